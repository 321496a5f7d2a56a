"""Filters whose taps read at constant distances, which is what fused loops have."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from ...operations import Taps


class Shifts(NamedTuple):
    """A filter along one axis of positions: tap a of output o reads `stride · o + shifts[a]`.

    Attributes:
        stride: Step between outputs.
        shifts: One for each tap that reads anything; they may repeat.
        borders: The positions outside of the axis that are read, each with the position that is
            there in place of it; -1 for a zero.
        wraps: Whether the axis closes in a circle: what is read is meant modulo its size.
    """

    stride: int
    shifts: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    wraps: bool

    @property
    def pads_with_zeros(self) -> bool:
        """Whether there are only zeros outside of the axis."""
        return all(shown < 0 for _, shown in self.borders)


@lru_cache(maxsize=256)
def shifts(taps: Taps) -> Shifts | None:
    """The filter of `taps`, or None if its taps have no constant distances.

    Those of transposed convolutions have none.
    """
    steps = {t - s for each in taps.sources for s, t in pairwise(each) if 0 <= s < t}
    for stride in sorted({1, *steps}):
        borders: dict[int, int] = {}
        read = [each for each in taps.sources if any(s >= 0 for s in each)]
        found = [_shift(each, taps.size_in, stride, borders) for each in read]
        if all(s is not None for s in found):
            wraps = (
                bool(borders)
                and taps.size_in == stride * taps.size_out
                and all(s >= 0 and (e - s) % taps.size_in == 0 for e, s in borders.items())
            )
            each_shift = tuple(s for s in found if s is not None)
            return Shifts(stride, each_shift, tuple(sorted(borders.items())), wraps)
    return None


def _shift(sources: tuple[int, ...], size: int, stride: int, borders: dict[int, int]) -> int | None:
    """The distance of one tap, which adds the positions outside that it reads to `borders`."""
    counts = Counter(s - stride * o for o, s in enumerate(sources) if s >= 0)
    for shift in sorted(counts, key=lambda n: (counts[n], n), reverse=True):
        reads = [(stride * o + shift, s) for o, s in enumerate(sources)]
        if all(s == (e if 0 <= e < size else borders.get(e, s)) for e, s in reads):
            borders.update((e, s) for e, s in reads if not 0 <= e < size)
            return shift
    return None
