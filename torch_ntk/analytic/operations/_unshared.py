"""Locally connected layers, which have different weights at each position."""

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

    At the same position in both images its K and Θ are those of the convolution `shared`. Between
    different positions both are 0, since these have no weights in common.

    Attributes:
        shared: The convolution that has the same taps and scales.
    """

    shared: Affine

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Apply the convolution at the same position; all other entries become 0."""
        (s,) = inputs
        if not s.full:
            return self.shared.state(inputs, variances)
        made = self.shared.state([s.same_positions()], [None]).each(_between_all)
        return State(made.nngp, made.ntk, distance=False, full=True)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the variance of the convolution."""
        return self.shared.variance(inputs)

    @property
    def cost(self) -> float:
        """The cost of the convolution."""
        return self.shared.cost


def _between_all(a: Tensor) -> Tensor:
    """Return `[..., P, Q]` as `[..., P, Q, P, Q]`, with 0 between different positions."""
    return torch.diag_embed(a.flatten(-2)).reshape(*a.shape, *a.shape[-2:])
