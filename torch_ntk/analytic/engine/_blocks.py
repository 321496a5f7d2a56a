"""How the matrix is divided: blocks that stay in cache, and within the budget of memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...memory import budget, ranges
from ._task import Block, Task
from ._variances import images

# Values of a block are read and written again and again: entries per array with which they stay
# in the second-level caches of a CPU; a GPU wants many more.
_CACHED = 1 << 18
_ON_GPU = 1 << 25
# Arrays of the largest value that are in memory at once, of K and as many of Θ: what is taken,
# what is made, and what an activation or a filter needs in between.
_ALIVE = 8


@dataclass(frozen=True)
class BlockSizes:
    """The division of the matrix.

    Attributes:
        rows: Images of x1 in a block.
        columns: Images of x2 in a block.
        images: Images of one side whose variances are in memory at once.
        fixed: Whether every block must have this size: the last ones then overlap.
    """

    rows: int
    columns: int
    images: int
    fixed: bool = False


def block_sizes(task: Task, shape: tuple[int, int], like: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a block of a matrix of `shape` for the plain evaluation.

    Args:
        task: What is evaluated.
        shape: Images of x1, images of x2.
        like: A tensor of the type and on the device of the computation.
    """
    entries = _entries_per_pair(task)
    most = (_CACHED if like.device.type == "cpu" else _ON_GPU) // entries
    fit = budget(like.device) // (2 * _ALIVE * entries * like.element_size())
    pairs = max(1, min(most, fit))
    # Long rows: the products of the first layer are faster, and a symmetric matrix wastes less.
    columns = min(shape[1], pairs if entries > 1 else max(1, pairs // 32))
    return max(1, min(shape[0], pairs // columns)), columns


def images_at_once(task: Task, like: torch.Tensor) -> int:
    """How many images of a side may have their variances in memory: half of the budget for all."""
    steps = zip(task.program.steps, task.plan.variances, strict=True)
    each = sum(step.positions[0] * step.positions[1] for step, needed in steps if needed)
    return budget(like.device) // (4 * like.element_size() * max(1, each))


def _entries_per_pair(task: Task) -> int:
    """Entries of the largest array for one pair of images."""
    most = 1
    for step, full in zip(task.program.steps, task.plan.full, strict=True):
        positions = step.positions[0] * step.positions[1]
        most = max(most, positions**2 if full else positions)
    return most


def blocks(task: Task, sizes: BlockSizes, shape: tuple[int, int]) -> Iterator[Block]:
    """The blocks of the matrix; of a symmetric one, those that reach its upper half."""
    for a, b in ranges(0, shape[0], sizes.images):
        one = images(task, 0, a, b)
        for c, d in ranges(a if task.symmetric else 0, shape[1], sizes.images):
            same = task.symmetric and c == a
            two = one if same else images(task, 0 if task.symmetric else 1, c, d)
            for e, f in ranges(a, b, sizes.rows):
                rows = one.part(*_of_one_size(e, f, sizes.rows, a, sizes.fixed))
                low = max(c, rows.start) if task.symmetric else c
                for g, h in ranges(low, d, sizes.columns):
                    yield Block(rows, two.part(*_of_one_size(g, h, sizes.columns, c, sizes.fixed)))


def _of_one_size(start: int, stop: int, size: int, least: int, fixed: bool) -> tuple[int, int]:
    """A range that reaches back, if it must have the size of the others."""
    return (max(least, stop - size), stop) if fixed else (start, stop)
