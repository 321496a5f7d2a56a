"""Positions whose features come from different, independent units of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class IndependentUnits(Operation):
    """Units of one layer at different positions, as `F.pixel_shuffle` arranges them.

    Different units of a layer are independent and have the same distribution. So K and Θ are 0
    between positions with different units, and unchanged between positions with the same unit.

    Attributes:
        units: The number of the unit at each position, row by row.
    """

    units: tuple[int, ...]

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Set pairs of positions with different units to 0; p = p' has one unit."""
        (s,) = inputs
        return s.each(self._between) if s.full else s

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the variance of the input, which does not change."""
        return inputs[0]

    @property
    def cost(self) -> float:
        """One product for K and one for Θ."""
        return 2.0

    def _between(self, a: Tensor) -> Tensor:
        """Return `a` `[..., P, Q, P, Q]` with 0 between positions with different units."""
        units = torch.tensor(self.units, device=a.device)
        return a * (units[:, None] == units).view(a.shape[-4:])
