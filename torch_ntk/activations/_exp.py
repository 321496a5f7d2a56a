"""The exponential function."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dual import DualActivation


class DualExp(DualActivation):
    """φ(x) = a exp(b x): κ = a² exp(b² (k + (q1 + q2)/2)) and κ̇ = b² κ, a log-normal moment.

    Args:
        scale: a.
        rate: b.
    """

    compiles = True

    def __init__(self, scale: float = 1.0, rate: float = 1.0) -> None:
        self.name = "exp"
        self.scale = scale
        self.rate = rate

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """E[φ(u)²] = a² exp(2 b² q), and b² times that."""
        value = self.scale**2 * torch.exp(2 * self.rate**2 * q)
        return value, self.rate**2 * value

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`."""
        value = self.scale**2 * torch.exp(self.rate**2 * (k + (q1 / 2 + q2 / 2)))
        return value, self.rate**2 * value

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """With b = 1, E[(φ(u) - φ(v))²] = a² [gap² + 2 exp(q1 + q2) (1 - exp(-d/2))], and κ̇.

        The gap is exp q1 - exp q2; another b multiplies the variances and d by b².
        """
        square, factor = self.rate**2, self.scale**2
        d, q1, q2 = square * d, square * q1, square * q2
        gap = (torch.expm1(q1) - torch.expm1(q2)).square()
        distance = gap - 2 * torch.exp(q1 + q2) * torch.expm1(-d / 2)
        return factor * distance, factor * square * torch.exp(q1 + q2 - d / 2)
