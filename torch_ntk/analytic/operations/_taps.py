"""The positions that the taps of a filter read along one axis of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

# The source of a tap that reads a zero added by the padding.
_ZERO = -1


@dataclass(frozen=True)
class Run:
    """Evenly spaced outputs with evenly spaced sources, so that both are slices.

    Attributes:
        out: The outputs.
        source: Their sources, of the same number.
    """

    out: slice
    source: slice


@dataclass(frozen=True)
class Taps:
    """The taps of a filter along one axis: tap a of output o reads the input `sources[a][o]`.

    Attributes:
        size_in: The number of positions of the input.
        sources: For each tap, the position of the input that each output reads; -1 reads a zero.
    """

    size_in: int
    sources: tuple[tuple[int, ...], ...]

    @property
    def size_out(self) -> int:
        """The number of positions of the output."""
        return len(self.sources[0])

    @property
    def trivial(self) -> bool:
        """Whether the filter is the identity."""
        return self.sources == (tuple(range(self.size_in)),)

    @cached_property
    def runs(self) -> tuple[tuple[Run, ...], ...]:
        """The sources of each tap as pairs of slices."""
        return tuple(_runs(s) for s in self.sources)


ONE = Taps(1, ((0,),))


@lru_cache(maxsize=256)
def taps(
    size: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    padding: tuple[int, int] = (0, 0),
    mode: PaddingMode = "zeros",
) -> Taps:
    """Return the taps of a convolution along an axis of `size` positions.

    Args:
        size: The number of positions of the input.
        kernel: The number of points of the kernel.
        stride: The step between outputs.
        dilation: The spacing of the kernel's points.
        padding: The numbers of positions that are added before and after.
        mode: The values of the added positions.
    """
    padded = [_padded(i, size, mode) for i in range(-padding[0], size + padding[1])]
    outputs = (len(padded) - dilation * (kernel - 1) - 1) // stride + 1
    return Taps(
        size,
        tuple(
            tuple(padded[o * stride + a * dilation] for o in range(max(0, outputs)))
            for a in range(kernel)
        ),
    )


@lru_cache(maxsize=256)
def transposed_taps(
    size: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
    output_padding: int = 0,
) -> Taps:
    """Return the taps of a transposed convolution along an axis of `size` positions.

    Input s adds to the outputs `o = s · stride - padding + a · dilation`, one for each tap a. So
    tap a of output o reads `(o + padding - a · dilation) / stride` where that is one of the inputs,
    and a zero otherwise.

    Args:
        size: The number of positions of the input.
        kernel: The number of points of the kernel.
        stride: The step between the outputs of neighbouring inputs.
        dilation: The spacing of the kernel's points.
        padding: The number of outputs that are left out on either side.
        output_padding: The number of outputs that are added at the end.
    """
    outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1

    def source(o: int, a: int) -> int:
        at, between = divmod(o + padding - a * dilation, stride)
        return at if between == 0 and 0 <= at < size else _ZERO

    return Taps(
        size, tuple(tuple(source(o, a) for o in range(max(0, outputs))) for a in range(kernel))
    )


def folded(outer: Taps, inner: Taps) -> Taps:
    """Return the taps of two axes joined to one, `o = o_outer · size_inner + o_inner`.

    Its taps are all pairs of an outer and an inner tap.
    """
    return Taps(
        outer.size_in * inner.size_in,
        tuple(
            tuple(_ZERO if _ZERO in (s, t) else s * inner.size_in + t for s in one for t in two)
            for one in outer.sources
            for two in inner.sources
        ),
    )


def _padded(i: int, size: int, mode: PaddingMode) -> int:
    if 0 <= i < size:
        return i
    if mode == "circular":
        return i % size
    if mode == "replicate":
        return 0 if i < 0 else size - 1
    if mode == "reflect":
        return -i if i < 0 else 2 * (size - 1) - i
    return _ZERO


def _runs(sources: Sequence[int]) -> tuple[Run, ...]:
    read = [(o, s) for o, s in enumerate(sources) if s != _ZERO]
    runs: list[Run] = []
    start = 0
    while start < len(read):
        stop, step = start + 1, (1, 1)
        if stop < len(read) and read[stop][1] > read[start][1]:
            step = _step(read[start], read[stop])
        while stop < len(read) and _step(read[stop - 1], read[stop]) == step:
            stop += 1
        runs.append(Run(*(_slice(read[start][i], step[i], stop - start) for i in (0, 1))))
        start = stop
    return tuple(runs)


def _step(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
    return two[0] - one[0], two[1] - one[1]


def _slice(start: int, step: int, count: int) -> slice:
    return slice(start, start + (count - 1) * step + 1, step)
