"""Filters whose taps read at constant distances, which is what fused loops have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from ...operations import Taps

# Steps that are tried, as the taps of several axes joined to one have none that fits.
_FEW = 17


class Shifts(NamedTuple):
    """A filter along one axis of positions: tap a of output o reads `stride · o + shifts[a]`.

    That of a transposed convolution reads `(o + shifts[a]) / up` where this is a position, and
    a zero otherwise.

    Attributes:
        stride: Step between outputs.
        shifts: One for each tap that reads anything; they may repeat.
        borders: The positions outside of the axis that are read, each with the position that is
            there in place of it; -1 for a zero.
        wraps: Whether the axis closes in a circle: what is read is meant modulo its size.
        up: Step between the outputs of neighbouring inputs.
    """

    stride: int
    shifts: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    wraps: bool
    up: int = 1

    @property
    def pads_with_zeros(self) -> bool:
        """Whether there are only zeros outside of the axis."""
        return all(shown < 0 for _, shown in self.borders)


@lru_cache(maxsize=256)
def shifts(taps: Taps) -> Shifts | None:
    """The filter of `taps`, or None if its taps have no constant distances."""
    read = [each for each in taps.sources if any(s >= 0 for s in each)]
    steps = {t - s for each in read for s, t in pairwise(each) if 0 <= s < t}
    for stride in sorted({*range(1, _FEW), *steps})[:_FEW]:
        borders: dict[int, int] = {}
        found = _each(read, lambda each: _shift(each, taps.size_in, stride, borders))  # noqa: B023
        shows = any(s >= 0 for s in borders.values())
        # Borders could explain any few taps at all by a step that no outputs show.
        if found is not None and (stride in {1, *steps} or not shows):
            wraps = (
                bool(borders)
                and taps.size_in == stride * taps.size_out
                and all(s >= 0 and (e - s) % taps.size_in == 0 for e, s in borders.items())
            )
            return Shifts(stride, found, tuple(sorted(borders.items())), wraps)
    for up in range(2, _FEW):
        found = _each(read, lambda each: _transposed(each, taps.size_in, up))  # noqa: B023
        if found is not None:
            return Shifts(1, found, (), False, up)
    return None


def _each(
    read: list[tuple[int, ...]], shift: Callable[[tuple[int, ...]], int | None]
) -> tuple[int, ...] | None:
    """The distance of each tap; None as soon as one has none."""
    found = []
    for each in read:
        n = shift(each)
        if n is None:
            return None
        found.append(n)
    return tuple(found)


def _shift(sources: tuple[int, ...], size: int, stride: int, borders: dict[int, int]) -> int | None:
    """The distance of one tap, which adds the positions outside that it reads to `borders`."""
    counts = Counter(s - stride * o for o, s in enumerate(sources) if s >= 0)
    for shift in sorted(counts, key=lambda n: (counts[n], n), reverse=True)[:3]:
        reads = [(stride * o + shift, s) for o, s in enumerate(sources)]
        if all(s == (e if 0 <= e < size else borders.get(e, s)) for e, s in reads):
            borders.update((e, s) for e, s in reads if not 0 <= e < size)
            return shift
    return None


def _transposed(sources: tuple[int, ...], size: int, up: int) -> int | None:
    """The same of a tap that reads `(o + shift) / up` where this is a position."""
    shift = next(up * s - o for o, s in enumerate(sources) if s >= 0)
    reads = [divmod(o + shift, up) for o in range(len(sources))]
    wanted = tuple(s if not rest and 0 <= s < size else -1 for s, rest in reads)
    return shift if wanted == sources else None
