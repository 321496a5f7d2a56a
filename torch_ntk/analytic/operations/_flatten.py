"""Flattening: the channels at all positions become the features of one position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Flatten(Operation):
    """The mean over `p = p'` of K and of Θ: the channels at every position become the features."""

    def wants_full(self, full: bool, several: bool) -> bool:
        """Return False: only the same position in both images enters the mean."""
        return False

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return the mean over positions, which is linear in covariances and in distances."""
        return inputs[0].same_positions().each(_mean)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the mean of the variances."""
        return _mean(inputs[0])

    def collected(self, full: bool, positions: int) -> float | None:
        """Return the factor of a mean over the same position in both images."""
        return None if full else 1 / positions

    @property
    def cost(self) -> float:
        """A sum of K and a sum of Θ."""
        return 2.0


def _mean(a: Tensor) -> Tensor:
    return a.mean(dim=(-2, -1), keepdim=True)
