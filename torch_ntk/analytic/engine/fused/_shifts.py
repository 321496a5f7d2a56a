"""Filters whose taps read at constant distances, which is what fused loops have."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ...operations import Taps


class Shifts(NamedTuple):
    """A filter along one axis of positions: tap a of output o reads `stride · o + shifts[a]`.

    Attributes:
        stride: Step between outputs.
        shifts: One for each tap that reads anything; they may repeat.
        wraps: Whether the axis closes in a circle: what is read is meant modulo its size.
    """

    stride: int
    shifts: tuple[int, ...]
    wraps: bool


@lru_cache(maxsize=256)
def shifts(taps: Taps) -> Shifts | None:
    """The filter of `taps`, or None if its taps have no constant distances.

    Outside of an axis that is no circle, all taps must read zeros: those of reflected borders do
    not, and neither do those of transposed convolutions.
    """
    for wraps in (False, True):
        for stride in range(1, taps.size_in + 1):
            found = [_shift(taps, sources, stride, wraps) for sources in taps.sources]
            if _all_constant(found):
                return Shifts(stride, tuple(s for s in found if isinstance(s, int)), wraps)
            if taps.size_out == 1 or (wraps and stride * taps.size_out > taps.size_in):
                break
    return None


def _all_constant(found: list[int | str]) -> bool:
    return _VARIES not in found


_NOTHING, _VARIES = "reads nothing", "varies"


def _shift(taps: Taps, sources: tuple[int, ...], stride: int, wraps: bool) -> int | str:
    """The distance of one tap."""
    size = taps.size_in
    read = [(o, s) for o, s in enumerate(sources) if s >= 0]
    if not read:
        return _NOTHING
    o, s = read[0]
    shift = s - stride * o
    if wraps:
        if len(read) < len(sources) or size != stride * len(sources):
            return _VARIES
        shift %= size
        shift = shift if shift <= size // 2 else shift - size
        return shift if all((stride * o + shift - s) % size == 0 for o, s in read) else _VARIES
    wanted = tuple(
        stride * o + shift if 0 <= stride * o + shift < size else -1 for o in range(len(sources))
    )
    return shift if wanted == sources else _VARIES
