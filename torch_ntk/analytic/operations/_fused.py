"""How a fused loop evaluates an operation."""

from __future__ import annotations

from dataclasses import dataclass

from ...activations import Formula
from ._taps import Taps


@dataclass(frozen=True)
class Fused:
    """An operation as a filter over positions followed by a formula for each entry.

    A fused loop applies all operations to the entries of one pair of images before it begins with
    the next pair; see `engine/fused/`.

    Attributes:
        formula: The statements that are evaluated for each entry. `k{i}` and `t{i}` are K and Θ of
            input i. With `taps`, `k0` and `t0` are *sums* over the taps.
        taps: The taps of the filter along each axis of positions; None without a filter.
        exact: The formula for the same position of identical images; None if `formula` is exact
            there. It has the numbers of `formula`.
    """

    formula: Formula
    taps: tuple[Taps, Taps] | None = None
    exact: Formula | None = None
