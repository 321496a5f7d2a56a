"""Gaussian bumps, and those that grow."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import value_error
from ._dual import DualActivation


class DualGaussian(DualActivation):
    """φ(x) = a exp(b x²).

    With D = (1 - 2b q1)(1 - 2b q2) - 4b² k²,

        κ = a² / √D,    κ̇ = 4 a² b² k / D^(3/2),

    from E exp(-½ zᵀ M z) = det(1 + Σ M)^(-1/2) for z of covariance Σ and M = -2b. For b > 0 the
    expectation of φ(u)² exists for variances below 1/(4b) only.

    Args:
        scale: a.
        rate: b.
    """

    def __init__(self, scale: float = 1.0, rate: float = -1.0) -> None:
        self.name = "gaussian"
        self.scale = scale
        self.rate = rate

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """`pair` at k = q, where D = 1 - 4b q."""
        self._check(q)
        root = torch.rsqrt(1 - 4 * self.rate * q)
        return self.scale**2 * root, (2 * self.scale * self.rate) ** 2 * q * root**3

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`."""
        self._check(q1)
        self._check(q2)
        b = self.rate
        # In this form nothing is subtracted from products of variances that are nearly equal.
        d = (1 - 2 * b * (q1 + q2)) + (2 * b) ** 2 * (q1 * q2 - k * k)
        root = torch.rsqrt(d)
        return self.scale**2 * root, (2 * self.scale * b) ** 2 * k * root**3

    def _check(self, q: Tensor) -> None:
        if self.rate > 0 and bool((4 * self.rate * q.detach() >= 1).any()):
            raise value_error(
                "activation",
                f"of variances below {1 / (4 * self.rate):g}, where its square has an expectation",
                f"a exp({self.rate:g} x²) at a variance of {float(q.max()):g}",
                "Use a smaller sigma_w before it, or a negative rate.",
            )
