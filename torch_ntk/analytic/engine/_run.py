"""The whole matrix: blocks of pairs, half of them where it is symmetric."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._ops import Input, Program
from .._plan import plan
from ._blocks import Blocks, blocks, ranges
from ._displacement import layout
from ._evaluate import Images, Task, evaluate
from ._streamed import Streamed
from ._variances import variances

# Entries times operations. Uncompiled, one takes about 10 ns; the compiler takes some ten seconds.
_WORTH_COMPILING = 2e9


def run(
    program: Program,
    *,
    ntk: bool,
    limit: int | None = None,
    progress: bool = False,
    compile: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """K and Θ `[N1, N2]` of a program.

    Args:
        program: The network with its inputs.
        ntk: Whether Θ is wanted.
        limit: Bytes that may be used; None chooses from the free memory.
        progress: Whether to show a progress bar.
        compile: Whether to compile the loops over pairs of positions; None decides by the work.
    """
    first = next(s.operation for s in program.steps if isinstance(s.operation, Input))
    like = first.x1
    symmetric = first.x2 is None
    shape = (len(first.x1), len(first.x1 if first.x2 is None else first.x2))
    task = Task(program, plan(program), ntk, symmetric)
    pairs = shape[0] * (shape[0] + 1) // 2 if symmetric else shape[0] * shape[1]
    streamed = _streamed(task, like, pairs, compile)
    sizes = blocks(
        program, task.plan, shape, like, limit, None if streamed is None else streamed.pairs
    )
    k = torch.zeros(shape, dtype=like.dtype, device=like.device)
    theta = torch.zeros_like(k) if ntk else None
    with tqdm(total=pairs, disable=not progress, unit="pair", desc="kernel") as bar:
        for one, two in _pairs(task, sizes, shape):
            known = None
            if streamed is not None:
                # Nothing of the network is compiled while it is read; the loops here may be.
                with torch.compiler.set_stance("default"):
                    known = {streamed.layout.pool: streamed(one, two)}
            block_k, block_t = evaluate(task, one, two, known)
            at = (slice(one.start, one.stop), slice(two.start, two.stop))
            k[at] = block_k
            if theta is not None and block_t is not None:
                theta[at] = block_t
            bar.update(_new_pairs(one, two, symmetric))
    if symmetric:
        return _mirrored(k), None if theta is None else _mirrored(theta)
    return k, theta


def _streamed(task: Task, like: Tensor, pairs: int, compile: bool | None) -> Streamed | None:
    """The evaluation by displacement, where it applies.

    It writes into buffers that it uses again, so not where derivatives are wanted.
    """
    found = layout(task.program, task.plan)
    if found is None or torch.is_grad_enabled():
        return None
    if compile is None:
        entries = math.prod(found.size) ** 2
        compile = pairs * entries * len(found.steps) > _WORTH_COMPILING
    return Streamed(task, found, like, compile)


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
                for g, h in ranges(max(c, e) if task.symmetric else c, d, sizes.columns):
                    yield one.part(e, f), two.part(g, h)


def _images(task: Task, side: int, start: int, stop: int) -> Images:
    found = variances(task.program, task.plan, side, slice(start, stop))
    return Images(start, stop, found)


def _new_pairs(one: Images, two: Images, symmetric: bool) -> int:
    pairs = (one.stop - one.start) * (two.stop - two.start)
    if not symmetric:
        return pairs
    # Of a block on the diagonal, what lies below it belongs to another pair.
    return sum(
        min(two.stop - max(two.start, n), two.stop - two.start) for n in range(one.start, one.stop)
    )


def _mirrored(a: Tensor) -> Tensor:
    """The upper triangle, and its mirror image below."""
    return a.triu() + a.triu(1).T
