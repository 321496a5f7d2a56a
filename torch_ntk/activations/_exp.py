"""The exponential function."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dual import DualActivation


class DualExp(DualActivation):
    """φ(x) = exp(x): κ = κ̇ = exp(k + (q1 + q2)/2), the moment of a log-normal variable."""

    name = "exp"
    compiles = True

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """E[φ(u)²] = E[φ'(u)²] = exp(2 q)."""
        value = torch.exp(2 * q)
        return value, value

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`."""
        value = torch.exp(k + (q1 / 2 + q2 / 2))
        return value, value

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """E[(φ(u) - φ(v))²] = (exp q1 - exp q2)² + 2 exp(q1 + q2) (1 - exp(-d/2)), and κ̇."""
        gap = (torch.expm1(q1) - torch.expm1(q2)).square()
        distance = gap - 2 * torch.exp(q1 + q2) * torch.expm1(-d / 2)
        return distance, torch.exp(q1 + q2 - d / 2)
