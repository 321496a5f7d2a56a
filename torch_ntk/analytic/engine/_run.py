"""The whole matrix: blocks of pairs, half of them where it is symmetric."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...memory import limited, ranges
from .._ops import Input, Program
from .._plan import plan
from ._blocks import Blocks, blocks
from ._displacement import equal_layout, layout
from ._equal import Equal
from ._evaluate import Images, Task, evaluate
from ._options import Options
from ._streamed import Streamed
from ._variances import variances

# Entries times operations. Uncompiled, one takes 10 to 20 ns; the compiler takes some ten seconds.
_WORTH_COMPILING = 5e8


def run(program: Program, options: Options, *, ntk: bool) -> tuple[Tensor, Tensor | None]:
    """K and Θ `[N1, N2]` of a program.

    Args:
        program: The network with its inputs.
        options: How it is computed.
        ntk: Whether Θ is wanted.
    """
    first = next(s.operation for s in program.steps if isinstance(s.operation, Input))
    like = first.x1
    symmetric = first.x2 is None
    shape = (len(first.x1), len(first.x1 if first.x2 is None else first.x2))
    task = Task(program, plan(program), ntk, symmetric)
    pairs = shape[0] * (shape[0] + 1) // 2 if symmetric else shape[0] * shape[1]
    fast = _fast(task, like, shape, pairs, options.compile)
    with limited(options.max_memory):
        sizes = blocks(program, task.plan, shape, like, fast)
    k = torch.empty(shape, dtype=like.dtype, device=like.device)
    theta = torch.empty_like(k) if ntk else None
    done = 0
    with tqdm(total=pairs, disable=not options.progress, unit="pair", desc="kernel") as bar:
        for one, two in _pairs(task, sizes, shape):
            known = None
            if fast is not None:
                # Nothing of the network is compiled while it is read; the loops here may be.
                with torch.compiler.set_stance("default"):
                    known = {fast.layout.end: fast(one, two)}
            block_k, block_t = evaluate(task, one, two, known)
            for whole, block in ((k, block_k), (theta, block_t)):
                if whole is not None and block is not None:
                    _put(whole, block, one, two, symmetric)
            done = min(pairs, done + _new_pairs(one, two, symmetric))
            bar.update(done - bar.n)
    return k, theta


def _fast(
    task: Task, like: Tensor, shape: tuple[int, int], pairs: int, compile: bool | None
) -> Streamed | Equal | None:
    """The evaluation in loops that reuse their buffers, where it applies.

    Not where derivatives are wanted, which would need what the buffers held.
    """
    if torch.is_grad_enabled():
        return None
    streamed, equal = layout(task.program, task.plan), equal_layout(task.program, task.plan)
    found = streamed or equal
    if found is None:
        return None
    if compile is None:
        entries = math.prod(found.size) ** (1 if streamed is None else 2)
        compile = pairs * entries * len(found.steps) > _WORTH_COMPILING
    if streamed is not None:
        return Streamed(task, streamed, like, compile)
    return Equal(task, found, like, shape) if compile else None


def _pairs(task: Task, sizes: Blocks, shape: tuple[int, int]) -> Iterator[tuple[Images, Images]]:
    """The blocks: images of the rows, images of the columns."""
    for a, b in ranges(0, shape[0], sizes.images):
        one = _images(task, 0, a, b)
        for c, d in ranges(a if task.symmetric else 0, shape[1], sizes.images):
            if task.symmetric:
                two = one if c == a else _images(task, 0, c, d)
            else:
                two = _images(task, 1, c, d)
            for e, f in ranges(a, b, sizes.rows):
                rows = one.part(*_of_one_size(e, f, sizes.rows, a, sizes.fixed))
                low = max(c, rows.start) if task.symmetric else c
                for g, h in ranges(low, d, sizes.columns):
                    yield rows, two.part(*_of_one_size(g, h, sizes.columns, c, sizes.fixed))


def _of_one_size(start: int, stop: int, size: int, least: int, fixed: bool) -> tuple[int, int]:
    """A range that reaches back, if it must have the size of the others."""
    return (max(least, stop - size), stop) if fixed else (start, stop)


def _images(task: Task, side: int, start: int, stop: int) -> Images:
    found = variances(task.program, task.plan, side, slice(start, stop))
    return Images(start, stop, found)


def _new_pairs(one: Images, two: Images, symmetric: bool) -> int:
    pairs = (one.stop - one.start) * (two.stop - two.start)
    if not symmetric:
        return pairs
    # Of a block on the diagonal, what lies below it belongs to another pair: row n counts from
    # column n on.
    whole = max(0, min(one.stop, two.start) - one.start)
    first, last = max(one.start, two.start), min(one.stop, two.stop)
    rows = max(0, last - first)
    return whole * (two.stop - two.start) + rows * two.stop - rows * (first + last - 1) // 2


def _put(whole: Tensor, block: Tensor, one: Images, two: Images, symmetric: bool) -> None:
    """Write a block into the matrix; of a symmetric one also its mirror image.

    Only what stands on or above the diagonal counts, so that the result is exactly symmetric.
    """
    rows, columns = slice(one.start, one.stop), slice(two.start, two.stop)
    if not symmetric:
        whole[rows, columns] = block
        return
    if (one.start, one.stop) == (two.start, two.stop):
        upper = torch.ones_like(block, dtype=torch.bool).triu()
        whole[rows, columns] = torch.where(upper, block, block.T)
        return
    if two.start < one.stop:
        n = torch.arange(one.start, one.stop, device=block.device)[:, None]
        m = torch.arange(two.start, two.stop, device=block.device)
        block = torch.where(n <= m, block, whole[rows, columns])
        whole[rows, columns] = block
        whole[columns, rows] = torch.where(n <= m, block, whole[columns, rows].T).T
        return
    whole[rows, columns] = block
    whole[columns, rows] = block.T
