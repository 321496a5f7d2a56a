"""The whole matrix: blocks of pairs, half of them where it is symmetric."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...memory import limited
from .._program import Program
from ._blocks import BlockSizes, block_sizes, blocks, images_at_once
from ._evaluate import evaluate, evaluations
from ._options import Options
from ._plan import plan
from ._task import Block, Task
from .fused import Partition

# Rows that are mirrored together.
_BAND = 64


def matrix(
    program: Program, parts: Partition, options: Options, *, ntk: bool
) -> tuple[Tensor, Tensor | None]:
    """K and Θ `[N1, N2]` of a program.

    Args:
        program: The network with its inputs.
        parts: Its regions and single steps.
        options: How it is computed.
        ntk: Whether Θ is wanted.
    """
    like = program.known[0].x1
    shape = (len(like), len(program.known[0].both[1]))
    symmetric = program.known[0].x2 is None
    task = Task(program, plan(program), ntk, symmetric)
    pairs = shape[0] * (shape[0] + 1) // 2 if symmetric else shape[0] * shape[1]
    units = evaluations(task, parts, like)
    with limited(options.max_memory):
        rows, columns = block_sizes(task, parts, shape, like)
        images = max(1, rows, columns, images_at_once(task, like))
    sizes = BlockSizes(rows, columns, images)
    k: Tensor | None = None
    theta: Tensor | None = None
    done = 0
    with tqdm(total=pairs, disable=not options.progress, unit="pair", desc="kernel") as bar:
        for block in blocks(task, parts, sizes, shape):
            block_k, block_t = evaluate(task, block, units)
            k = _put(k, block_k, block, shape)
            theta = None if block_t is None else _put(theta, block_t, block, shape)
            done = min(pairs, done + _new_pairs(block, symmetric))
            bar.update(done - bar.n)
    if k is None:  # no samples on a side
        k = torch.empty(shape, dtype=like.dtype, device=like.device)
        theta = torch.empty_like(k) if ntk else None
    if symmetric:
        k, theta = _mirrored(k), None if theta is None else _mirrored(theta)
    return k, theta


def _new_pairs(block: Block, symmetric: bool) -> int:
    """Return how many new pairs a block has; of a symmetric matrix, in its upper half."""
    one, two = block.rows, block.columns
    if not symmetric:
        return len(one) * len(two)
    # Of a block on the diagonal, what lies below it belongs to another pair: row n counts from
    # column n on.
    whole = max(0, min(one.stop, two.start) - one.start)
    first, last = max(one.start, two.start), min(one.stop, two.stop)
    rows = max(0, last - first)
    return whole * len(two) + rows * two.stop - rows * (first + last - 1) // 2


def _put(whole: Tensor | None, part: Tensor, block: Block, shape: tuple[int, int]) -> Tensor:
    """Return the matrix with a block in its place; the block itself if it is everything."""
    if block.shape == shape and part.is_contiguous():
        return part
    if whole is None:
        whole = torch.empty(shape, dtype=part.dtype, device=part.device)
    whole[block.rows.slice, block.columns.slice] = part
    return whole


def _mirrored(a: Tensor) -> Tensor:
    """A matrix with its upper half also in its lower one, so that it is exactly symmetric.

    In bands that are narrow enough to be read along columns from the innermost cache.
    """
    if torch.is_grad_enabled():
        return a.triu() + a.triu(1).T
    for start in range(0, len(a), _BAND):
        stop = min(len(a), start + _BAND)
        square = a[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).T)
        a[stop:, start:stop] = a[start:stop, stop:].T
    return a
