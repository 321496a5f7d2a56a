"""Positions become features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Flatten(Operation):
    """The mean over `p = p'` of K and of Θ: channels at every position are the new features."""

    def wants_full(self, full: bool, several: bool) -> bool:
        """Never: only the same position enters."""
        return False

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """A mean is linear, of distances as of covariances."""
        return inputs[0].same_positions().each(_mean)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """The mean of the variances."""
        return _mean(inputs[0])

    def collected(self, full: bool, positions: int) -> float | None:
        """The mean over the same positions."""
        return None if full else 1 / positions

    @property
    def cost(self) -> float:
        """A sum of K and one of Θ."""
        return 2.0


def _mean(a: Tensor) -> Tensor:
    return a.mean(dim=(-2, -1), keepdim=True)
