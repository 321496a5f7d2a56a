"""Where each tap of a filter reads along one axis of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

# A source of -1: the tap reads a zero that the padding added.
_ZERO = -1


@dataclass(frozen=True)
class Run:
    """Consecutive outputs whose sources are equally far apart.

    Attributes:
        out: The outputs.
        source: The sources, as many.
    """

    out: slice
    source: slice


@dataclass(frozen=True)
class Taps:
    """The taps of a filter along one axis: `sources[a][o]` is what tap a of output o reads.

    Attributes:
        size_in: Positions of the input.
        sources: Per tap, per output; -1 where it reads a zero.
    """

    size_in: int
    sources: tuple[tuple[int, ...], ...]

    @property
    def size_out(self) -> int:
        """Positions of the output."""
        return len(self.sources[0])

    @property
    def trivial(self) -> bool:
        """Whether there is one tap, and it reads where it writes."""
        return self.sources == (tuple(range(self.size_in)),)

    @cached_property
    def runs(self) -> tuple[tuple[Run, ...], ...]:
        """The sources of each tap as slices."""
        return tuple(_runs(s) for s in self.sources)


ONE = Taps(1, ((0,),))


def taps(
    size: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    padding: tuple[int, int] = (0, 0),
    mode: PaddingMode = "zeros",
) -> Taps:
    """The taps of a convolution along an axis of `size` positions.

    Args:
        size: Positions of the input.
        kernel: Points of the kernel.
        stride: Step between outputs.
        dilation: Spacing of the kernel's points.
        padding: Positions added before and after.
        mode: What the added positions show.
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
    runs: list[Run] = []
    start = 0
    while start < len(sources):
        if sources[start] == _ZERO:
            start += 1
            continue
        stop, step = start + 1, 1
        if stop < len(sources) and sources[stop] > sources[start]:
            step = sources[stop] - sources[start]
        while stop < len(sources) and sources[stop] == sources[stop - 1] + step:
            stop += 1
        first = sources[start]
        runs.append(
            Run(slice(start, stop), slice(first, first + (stop - start - 1) * step + 1, step))
        )
        start = stop
    return tuple(runs)
