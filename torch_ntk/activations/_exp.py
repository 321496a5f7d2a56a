"""The dual functions of the exponential function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dual import DualActivation
from ._exponential import exponential
from ._formula import Form, Formula


class DualExp(DualActivation):
    """φ(x) = a exp(b x): κ = a² exp(b² (k + (q1 + q2)/2)) and κ̇ = b² κ, a log-normal moment.

    Args:
        scale: a.
        rate: b.
    """

    def __init__(self, scale: float = 1.0, rate: float = 1.0) -> None:
        self.name = "exp"
        self.scale = scale
        self.rate = rate

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = a² exp(2 b² q) and E[φ'(u)²] = b² E[φ(u)²]."""
        value = self.scale**2 * torch.exp(2 * self.rate**2 * q)
        return value, self.rate**2 * value

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        value = self.scale**2 * torch.exp(self.rate**2 * (k + (q1 / 2 + q2 / 2)))
        return value, self.rate**2 * value

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(φ(u) - φ(v))²] and κ̇ without loss of digits for small d.

        For b = 1, E[(φ(u) - φ(v))²] = a² [gap² + 2 exp(q1 + q2) (1 - exp(-d/2))] with the gap
        exp q1 - exp q2. For other b the variances and d are first multiplied by b².
        """
        square, factor = self.rate**2, self.scale**2
        d, q1, q2 = square * d, square * q1, square * q2
        gap = (torch.expm1(q1) - torch.expm1(q2)).square()
        distance = gap - 2 * torch.exp(q1 + q2) * torch.expm1(-d / 2)
        return factor * distance, factor * square * torch.exp(q1 + q2 - d / 2)

    def fused(self, form: Form) -> Formula:
        """Return statements for the same formulas, with the terms b² q and exp(b² q) - 1."""
        square = self.rate**2
        numbers = (square, self.scale**2, square * self.scale**2)

        def terms(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            q = square * variances[0]
            return (q, torch.expm1(q)) if form.distance else (q,)

        if not form.distance:
            lines = (
                "x = p0 * k0 + 0.5 * (a0 + b0)",
                *exponential("rise", form.double),
                "k = p1 * (rise + 1.0)",
                "t = t0 * (p2 * (rise + 1.0))",
            )
            return Formula(lines, numbers, terms)
        lines = (
            "x = -0.5 * p0 * k0",
            *exponential("fall", form.double),
            "both = (a1 + 1.0) * (b1 + 1.0)",
            "gap = a1 - b1",
            "k = p1 * (gap * gap - 2.0 * both * fall)",
            "t = t0 * (p2 * both * (fall + 1.0))",
        )
        return Formula(lines, numbers, terms)
