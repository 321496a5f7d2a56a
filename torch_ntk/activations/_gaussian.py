"""The dual functions of a exp(b x²), a Gaussian function for negative b."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import value_error
from ._dual import DualActivation
from ._formula import Form, Formula, by_covariance

# D is smaller than this only where the expectation is about to diverge, and outside of images.
_SMALLEST_DETERMINANT = 1e-8


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
        """Return E[φ(u)²] and E[φ'(u)²]: `pair` at k = q1 = q2 = q, where D = 1 - 4b q."""
        self._check(q)
        root = torch.rsqrt(1 - 4 * self.rate * q)
        return self.scale**2 * root, (2 * self.scale * self.rate) ** 2 * q * root**3

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        self._check(q1)
        self._check(q2)
        b = self.rate
        # Unlike in the definition of D, nothing is added to q1 q2 before k² is subtracted from it.
        d = (1 - 2 * b * (q1 + q2)) + (2 * b) ** 2 * (q1 * q2 - k * k)
        root = torch.rsqrt(d)
        return self.scale**2 * root, (2 * self.scale * b) ** 2 * k * root**3

    def fused(self, form: Form) -> Formula:
        """Return statements for the same formulas; the term of an image is q."""
        lines = (
            "d = (1.0 - 2.0 * p0 * (a0 + b0)) + 4.0 * p0 * p0 * (a0 * b0 - k0 * k0)",
            f"root = 1.0 / sqrt(max(d, {_SMALLEST_DETERMINANT!r}))",
            "k = p1 * root",
            "t = t0 * (4.0 * p0 * p0 * p1 * k0 * (root * root * root))",
        )

        def terms(variances: Sequence[Tensor]) -> tuple[Tensor]:
            self._check(variances[0])
            return (variances[0],)

        formula = Formula(lines, (self.rate, self.scale**2), terms)
        return by_covariance(formula, self.diagonal) if form.distance else formula

    def _check(self, q: Tensor) -> None:
        if self.rate > 0 and bool((4 * self.rate * q.detach() >= 1).any()):
            raise value_error(
                "activation",
                f"of variances below {1 / (4 * self.rate):g}, where its square has an expectation",
                f"a exp({self.rate:g} x²) at a variance of {float(q.max()):g}",
                "Use a smaller sigma_w before it, or a negative rate.",
            )
