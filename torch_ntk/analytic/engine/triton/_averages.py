"""Averages over some positions of values that a kernel has stored.

Each result is the sum of many displacements, which program instances compute in any order. So that
every sum has one order, whatever the number of pairs, instances first store what they have at the
displacements that are needed. Then, along one axis after the other, each result adds its terms:

    K[o, o'] = Σ_{y, y'} M[o, y] M[o', y'] K[y, y'].
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..fused import Extent, Windows
from ._module import load

_BLOCK, _WARPS = 512, 4

_TEXT = '''"""Averages along one axis of positions, written by torch_ntk."""
import triton
import triton.language as tl


@triton.jit
def kernel(made, taken, where, weights, shape, BLOCK: tl.constexpr):
    # For results [o, number, m, position, i] the place of each term in `taken`, for m = i = 0.
    after, before, middle, positions = (tl.load(shape), tl.load(shape + 1), tl.load(shape + 2),
                                        tl.load(shape + 3))
    inner, step, terms = tl.load(shape + 4), tl.load(shape + 5), tl.load(shape + 6)
    blocks = tl.cdiv(after, BLOCK)
    o = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = j < after
    m = j // (inner * positions) % middle
    number = j // (inner * positions * middle)
    at = (number * positions + j // inner % positions) * terms
    read = taken + o * before + m * step + j % inner
    s = tl.zeros([BLOCK], tl.float{bits})
    for n in range(0, terms):
        w = tl.load(weights + at + n, mask=there, other=0.0)
        source = tl.load(where + at + n, mask=there, other=0)
        s += w * tl.load(read + source, mask=there & (w != 0.0), other=0.0)
    tl.store(made + o * after + j, s, mask=there)
'''


def source(dtype: torch.dtype) -> str:
    """Return the code of the kernel for numbers of a type."""
    return _TEXT.replace("{bits}", "64" if dtype == torch.float64 else "32")


def averaged(a: Tensor, taken: Extent, made: Extent, axes: tuple[Windows, Windows]) -> Tensor:
    """Return averages of K and Θ for some pairs of images, `[pairs, 2 · entries]`.

    Args:
        a: K and Θ of what is averaged, in the same form.
        taken: At which positions and displacements `a` is there.
        made: The same of the result.
        axes: The windows along both axes.
    """
    (p, q), (down, across) = taken.positions, taken.displacements
    rows = a.new_zeros(len(a), 2, made.displacements[0], across, made.positions[0], q)
    _along(rows, a, axes[0], (down, p), (made.displacements[0], made.positions[0]), across, q)
    result = a.new_zeros(len(a), 2 * made.entries)
    numbers = made.displacements[1], made.positions[1]
    _along(result, rows, axes[1], (across, q), numbers, made.positions[0], 1)
    return result


def _along(
    made: Tensor,
    taken: Tensor,
    axis: Windows,
    before: tuple[int, int],
    after: tuple[int, int],
    middle: int,
    inner: int,
) -> None:
    """Average along one axis: `[·, N, middle, P, inner]` becomes `[·, N', middle, P', inner]`.

    Args:
        made: Where the results go.
        taken: What is averaged.
        axis: The windows.
        before: N and P, the numbers of displacements and of positions.
        after: N' and P'.
        middle: The size of the axis between both.
        inner: The size of the last axis.
    """
    where, weights = _terms(axis, before, after, middle, inner)
    entries, step = after[0] * middle * after[1] * inner, before[1] * inner
    outer = made.numel() // max(1, entries)
    shape = [entries, before[0] * middle * step, middle, after[1], inner, step, where.shape[-1]]
    if not outer:
        return
    with torch.cuda.device_of(made):  # type: ignore[no-untyped-call]
        load(source(made.dtype))[(outer * -(-entries // _BLOCK),)](
            made,
            taken,
            where.to(made.device),
            weights.to(made),
            torch.tensor(shape, dtype=torch.int32, device=made.device),
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )


@lru_cache(maxsize=64)
def _terms(
    axis: Windows, before: tuple[int, int], after: tuple[int, int], middle: int, inner: int
) -> tuple[Tensor, Tensor]:
    """Return where the terms of every result are in what is averaged, and their weights.

    Both are `[N', P', terms]`, with weights of 0 where there are fewer terms.
    """
    windows: list[list[tuple[int, float]]] = [[] for _ in range(after[1])]
    for y, each in enumerate(axis.around):
        for o, w in each:
            if o >= 0:
                windows[o].append((y, w))
    found = []
    for number in range(after[0]):
        for o in range(after[1]):
            other = _other(o, number, after)
            found.append(
                [
                    ((n * middle * before[1] + y) * inner, v * w)
                    for y, v in windows[o]
                    for z, w in (windows[other] if other >= 0 else [])
                    if (n := _number(z - y, before)) >= 0
                ]
            )
    most = max(1, *(len(f) for f in found))
    filled = [[*f, *[(0, 0.0)] * (most - len(f))] for f in found]
    where = torch.tensor([[at for at, _ in f] for f in filled], dtype=torch.int32)
    weights = torch.tensor([[w for _, w in f] for f in filled], dtype=torch.float64)
    return where.view(*after, most), weights.view(*after, most)


def _other(position: int, number: int, of: tuple[int, int]) -> int:
    """Return the position at a displacement from another one; -1 outside.

    Args:
        position: The first position.
        number: Of the displacement; see `fused/_packed.py`.
        of: The numbers of displacements and of positions.
    """
    count, size = of
    if count == size:
        return (position + number) % size
    other = position + (number if number <= count // 2 else number - count)
    return other if 0 <= other < size else -1


def _number(displacement: int, of: tuple[int, int]) -> int:
    """Return the number of a displacement; -1 if it is not kept. Arguments as above."""
    count, size = of
    if count == size:
        return displacement % size
    return displacement % count if abs(displacement) <= count // 2 else -1
