"""The dual functions of the error function."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._angle import acute_angle
from ._dual import DualActivation
from ._formula import Form, Formula, by_covariance

# √(1 - c²) is at least 1/√(1 + 4q), so it is smaller than this only for variances beyond the
# inverse of the precision.
_SMALLEST_SINE = 1e-8


class DualErf(DualActivation):
    """φ(x) = erf x.

    With D = 1 + 2 (q1 + q2) + 4 (q1 q2 - k²),

        κ = (2/π) arctan(2k / √D),    κ̇ = (4/π) / √D.

    The first is (2/π) arcsin(2k / √((1 + 2 q1)(1 + 2 q2))) of Williams 1996, "Computing with
    Infinite Networks", in a form that is as accurate near ±1 as elsewhere.
    """

    name = "erf"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = (2/π) arctan(2q/√(1 + 4q)) and E[φ'(u)²] = (4/π)/√(1 + 4q)."""
        root = torch.sqrt(1 + 4 * q)
        return torch.atan(2 * q / root) * (2 / math.pi), (4 / math.pi) / root

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        d = ((1 + 2 * q1) + 2 * q2) + 4 * (q1 * q2 - k * k)
        # D is at least 1; rounding takes it below only where the variances exceed the inverse
        # precision. (The bound is not 1, at which `clamp` would lose the derivative.)
        root = d.clamp(min=0.5).sqrt()
        return torch.atan(2 * k / root) * (2 / math.pi), (4 / math.pi) / root

    def fused(self, form: Form) -> Formula:
        """Return statements for Williams' form, the arcsine of c = 2k r1 r2 with r = 1/√(1 + 2q).

        The term of an image is r. As D = (1 + 2 q1)(1 + 2 q2) (1 - c²), √D = √(1 - c²) / (r1 r2).
        """
        lines = (
            "both = a0 * b0",
            "c = 2.0 * k0 * both",
            "x = min(abs(c), 1.0)",
            "e = 1.0 - x",
            *acute_angle(form.double),
            "angle = 1.5707963267948966 - acute",
            "k = p0 * (angle if c > 0.0 else -angle)",
            "t = t0 * (2.0 * p0 * both / max(sine, p1))",
        )
        formula = Formula(lines, (2 / math.pi, _SMALLEST_SINE), _inverse_roots)
        return by_covariance(formula, self.diagonal) if form.distance else formula


def _inverse_roots(variances: Sequence[Tensor]) -> tuple[Tensor]:
    return (1.0 / torch.sqrt(1 + 2 * variances[0]),)
