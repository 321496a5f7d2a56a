"""How the matrix is divided: blocks that stay in cache, and within the budget of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...memory import budget, ranges
from ..operations import Input
from ._task import Block, Task
from ._within import WithinImages
from .fused import Partition, Region

# Values of a block are read and written again and again: entries per array with which they stay
# in the second-level caches of a CPU; a GPU wants many more.
_CACHED = 1 << 18
_ON_GPU = 1 << 25
# Arrays of the largest value that are in memory at once, of K and as many of Θ: what is taken,
# what is made, and what an activation or a filter needs in between.
_ALIVE = 8
# Entries of all values that a block of pairs has in fused loops: about a second on one core.
_MOST_WORK = 1 << 29
# The same in kernels on a GPU.
_MOST_WORK_ON_GPU = 1 << 35
# Pairs of vectors in a block: with fewer, what is made ready for each block takes a sixth of the
# time of an MLP kernel of 2,000 samples.
_VECTORS = 1 << 22


@dataclass(frozen=True)
class BlockSizes:
    """The division of the matrix.

    Attributes:
        rows: Images of x1 in a block.
        columns: Images of x2 in a block.
        images: Images of one side whose variances are in memory at once.
    """

    rows: int
    columns: int
    images: int


def block_sizes(
    task: Task, parts: Partition, shape: tuple[int, int], like: torch.Tensor
) -> tuple[int, int]:
    """Rows and columns of a block of a matrix of `shape`.

    Args:
        task: The computation.
        parts: Its regions and single steps.
        shape: Images of x1, images of x2.
        like: A tensor of the type and on the device of the computation.
    """
    entries = parts.largest(task.program, task.plan)
    available = budget(like.device) // (2 * _ALIVE * like.element_size())
    if all(not isinstance(u, int) or task.program.steps[u].positions == (1, 1)
           for u in parts.units):  # fmt: skip
        return _of_regions(task, parts, shape, available, entries)
    most = (_CACHED if like.device.type == "cpu" else _ON_GPU) // entries
    pairs = max(1, min(most, available // entries))
    # Long rows: the products of the first layer are faster, and a symmetric matrix wastes less.
    columns = min(shape[1], pairs if entries > 1 else max(1, pairs // 32))
    return max(1, min(shape[0], pairs // columns)), columns


def _of_regions(
    task: Task, parts: Partition, shape: tuple[int, int], available: int, entries: int
) -> tuple[int, int]:
    """Return blocks that take about a second, as loops need little memory for a pair."""
    work = sum(
        math.prod(positions) * r.displacements(positions)
        for r in parts.regions
        for positions in (task.program.steps[i].positions for i in r.steps)
    )
    most = _MOST_WORK_ON_GPU if parts.kernels else _MOST_WORK
    pairs = max(1, min(available // entries, most // max(1, work)))
    if entries == 1 and all(r.layout is None for r in parts.regions):
        pairs = min(pairs, _VECTORS)
    # Terms of formulas, about four for each position of a step, in two arrangements.
    each = 2 * sum(
        math.prod(task.program.steps[i].positions) * (4 + _coefficients(r, i))
        for r in parts.regions
        for i in r.steps
    )
    side = max(1, _ALIVE * available // max(1, each))
    columns = min(shape[1], side, max(1, math.isqrt(pairs)))
    rows = min(shape[0], side, max(1, pairs // columns))
    return rows, min(shape[1], side, max(columns, pairs // rows))


def _coefficients(region: Region, step: int) -> int:
    """Return the largest number of coefficients of a series; 0 without one."""
    fused = region.fused.get(step)
    return 0 if fused is None or fused.formula.series is None else fused.formula.series.most


def images_at_once(task: Task, like: torch.Tensor) -> int:
    """Return how many images may have variances in memory, for half of the budget."""
    steps = zip(task.program.steps, task.plan.variances, strict=True)
    each = 0
    for step, needed in steps:
        if needed:
            positions = step.positions[0] * step.positions[1]
            of = step.operation
            each += positions if isinstance(of, Input) else of.kept_per_image(positions)
    return budget(like.device) // (4 * like.element_size() * max(1, each))


def blocks(
    task: Task, parts: Partition, sizes: BlockSizes, shape: tuple[int, int]
) -> Iterator[Block]:
    """Yield the blocks of the matrix; of a symmetric one, those of its upper half."""
    first = WithinImages(task, parts, 0)
    second = first if task.symmetric else WithinImages(task, parts, 1)
    for a, b in ranges(0, shape[0], sizes.images):
        one = first(a, b)
        for c, d in ranges(a if task.symmetric else 0, shape[1], sizes.images):
            same = task.symmetric and c == a
            two = one if same else second(c, d)
            for e, f in ranges(a, b, sizes.rows):
                rows = one.part(e, f)
                low = max(c, rows.start) if task.symmetric else c
                for g, h in ranges(low, d, sizes.columns):
                    yield Block(rows, two.part(g, h))
