"""Layers with weights of their own at each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._affine import Affine
from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Unshared(Operation):
    """A convolution with independent weights and biases at each position.

    At the same position in both images it is the convolution `shared`; between different ones
    both K and Θ are 0, since no weight is in both.

    Attributes:
        shared: The same layer with one set of weights for all positions.
    """

    shared: Affine

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """What the covariances between different positions were does not matter."""
        (s,) = inputs
        if not s.full:
            return self.shared.state(inputs, variances)
        made = self.shared.state([s.same_positions()], [None]).each(_between_all)
        return State(made.nngp, made.ntk, distance=False, full=True)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """That of the convolution."""
        return self.shared.variance(inputs)

    @property
    def cost(self) -> float:
        """That of the convolution."""
        return self.shared.cost


def _between_all(a: Tensor) -> Tensor:
    """`[..., P, Q]` to `[..., P, Q, P, Q]`, 0 between different positions."""
    return torch.diag_embed(a.flatten(-2)).reshape(*a.shape, *a.shape[-2:])
