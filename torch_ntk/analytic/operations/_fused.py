"""How an operation goes through a fused loop."""

from __future__ import annotations

from dataclasses import dataclass

from ...activations import Formula
from ._taps import Taps


@dataclass(frozen=True)
class Fused:
    """An operation as a filter over positions and a formula for each entry.

    A fused loop takes one image of covariances through all operations before it begins with the
    next; see `engine/fused/`.

    Attributes:
        formula: What is done to an entry. An operation of several inputs finds those of input i
            in `k{i}` and `t{i}`. With `taps`, `k0` and `t0` are the *sums* over the taps.
        taps: Of a filter along either axis of positions that comes first; None without.
        exact: In place of `formula` where both images are the same and so are the positions; None
            if `formula` is exact there. Its numbers are those of `formula`.
    """

    formula: Formula
    taps: tuple[Taps, Taps] | None = None
    exact: Formula | None = None
