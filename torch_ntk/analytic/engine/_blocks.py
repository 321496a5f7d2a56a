"""How many pairs are computed at once: blocks that stay in cache, and within a byte budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...memory import budget
from .._ops import Program
from .._plan import Plan
from ._equal import Equal
from ._streamed import Streamed

# Values of a block are read and written again and again: entries per array with which they stay
# in the second-level caches of a CPU; a GPU wants many more.
_CACHED = 1 << 18
_ON_GPU = 1 << 25
# Arrays of the largest value that are alive at once: what is taken, what is made, and what an
# activation or a filter needs in between.
_ALIVE = 8
# Images on a side of a block whose pairs are computed one after the other.
_SIDE = 8


@dataclass(frozen=True)
class Blocks:
    """The division of the matrix.

    Attributes:
        rows: Images of x1 in a block.
        columns: Images of x2 in a block.
        images: Images of one side whose variances are held at once.
        fixed: Whether every block must have this size: the last ones then overlap.
    """

    rows: int
    columns: int
    images: int
    fixed: bool = False


def entries_per_pair(program: Program, plan: Plan) -> int:
    """Entries of the largest array for one pair of images."""
    most = 1
    for step, full in zip(program.steps, plan.full, strict=True):
        positions = step.positions[0] * step.positions[1]
        most = max(most, positions**2 if full else positions)
    return most


def blocks(
    program: Program,
    plan: Plan,
    shape: tuple[int, int],
    like: torch.Tensor,
    fast: Streamed | Equal | None = None,
) -> Blocks:
    """Blocks for a matrix of `shape`.

    Args:
        program: The network.
        plan: How its values are held.
        shape: Images of x1, images of x2.
        like: A tensor of the type and on the device of the computation.
        fast: What evaluates the blocks, if it has sizes of its own.
    """
    device, size = like.device, like.element_size()
    bytes_ = budget(device)
    most = _CACHED if device.type == "cpu" else _ON_GPU
    entries = entries_per_pair(program, plan)
    pairs = max(1, min(most // entries, bytes_ // (2 * _ALIVE * entries * size)))
    # Long rows: the products of the first layer are faster, and a symmetric matrix wastes less.
    columns = min(shape[1], pairs if entries > 1 else max(1, pairs // 32))
    rows = max(1, min(shape[0], pairs // columns))
    if isinstance(fast, Equal):
        rows, columns = fast.rows, fast.columns
    elif fast is not None:
        side = max(_SIDE, math.isqrt(fast.pairs - 1) + 1)
        rows, columns = min(shape[0], side), min(shape[1], side)
    held = sum(
        step.positions[0] * step.positions[1]
        for step, needed in zip(program.steps, plan.variances, strict=True)
        if needed
    )
    images = max(1, rows, columns, bytes_ // (4 * size * max(1, held)))
    return Blocks(rows, columns, images, isinstance(fast, Equal))
