"""Positions that were channels of one value before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Apart(Operation):
    """Independent units at different positions, as `F.pixel_shuffle` places them.

    Units of one layer have one law and no covariance, so both K and Θ are 0 between positions with
    different units, and stay as they are between the others.

    Attributes:
        units: Per position, row by row, the number of its unit.
    """

    units: tuple[int, ...]

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """At the same position in both images there is one unit."""
        (s,) = inputs
        return s.each(self._between) if s.full else s

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """As it is."""
        return inputs[0]

    @property
    def cost(self) -> float:
        """A product."""
        return 2.0

    def _between(self, a: Tensor) -> Tensor:
        """`a` `[..., P, Q, P, Q]`, 0 between different units."""
        units = torch.tensor(self.units, device=a.device)
        return a * (units[:, None] == units).view(a.shape[-4:])
