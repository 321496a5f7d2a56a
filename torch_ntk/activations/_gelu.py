"""The dual functions of the Gaussian error linear unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._angle import acute_angle
from ._dual import DualActivation
from ._formula import Form, Formula, by_covariance

_PER_TURN = 1 / (2 * math.pi)
# √(1 - c²) is at least 1/√(1 + 2q), so it is smaller than this only for variances beyond the
# inverse of the precision.
_SMALLEST_SINE = 1e-8


class DualGELU(DualActivation):
    """φ(x) = x P(z ≤ x) = x (1 + erf(x/√2)) / 2 for a standard Gaussian z.

    With w_i = q_i / (1 + q_i), h = 1 - w1 - w2, Δ = (1 + q1)(1 + q2) - k², A = arctan(k / √Δ) and
    N = q1 q2 + h k²,

        κ  = k/4 + (k A + N / √Δ) / (2π),
        κ̇ = 1/4 + (A + (k / √Δ)(1 + 2h + N / Δ)) / (2π).

    Derivation: φ is x/2 plus the even function x erf(x/√2)/2, so the mixed terms vanish; in
    E[u v e(u) e(v)] with e = erf(·/√2), Stein's lemma turns u and v into derivatives of
    E[e(u) e(v)] = (2/π) A. κ̇ is ∂κ/∂k. The kernel is that of Tsuchida, Pearce, van der Heide,
    Roosta and Gallagher 2021, "Avoiding Kernel Fixed Points: Computing with ELU and GELU Infinite
    Networks".
    """

    name = "gelu"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] and E[φ'(u)²]: `pair` at k = q1 = q2 = q, where Δ = 1 + 2q."""
        return _kappa_and_slope(q, q.square(), 1 + 2 * q, (1 - q) / (1 + q))

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        product = q1 * q2
        h = 1 / (1 + q1) - q2 / (1 + q2)
        delta = ((1 + q1) + q2) + (product - k * k)
        # Δ is at least 1; rounding takes it below only where the variances exceed the inverse
        # precision. (The bound is not 1, at which `clamp` would lose the derivative.)
        return _kappa_and_slope(k, product, delta.clamp(min=0.5), h)

    def fused(self, form: Form) -> Formula:
        """Return statements in which A is the arcsine of c = k r1 r2 with r = 1/√(1 + q).

        The terms of an image are r, q and w. As Δ = (1 + q1)(1 + q2) (1 - c²),
        √Δ = √(1 - c²) / (r1 r2).
        """
        lines = (
            "both = a0 * b0",
            "c = k0 * both",
            "x = min(abs(c), 1.0)",
            "e = 1.0 - x",
            *acute_angle(form.double),
            "angle = 1.5707963267948966 - acute",
            "angle = angle if c > 0.0 else -angle",
            "inverse = both / max(sine, p1)",
            "h = 1.0 - a2 - b2",
            "n = a1 * b1 + h * (k0 * k0)",
            "k = 0.25 * k0 + (k0 * angle + n * inverse) * p0",
            "slope = angle + k0 * inverse * (1.0 + 2.0 * h + n * inverse * inverse)",
            "t = t0 * (0.25 + slope * p0)",
        )
        formula = Formula(lines, (_PER_TURN, _SMALLEST_SINE), _terms)
        return by_covariance(formula, self.diagonal) if form.distance else formula


def _terms(variances: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    (q,) = variances
    return 1.0 / torch.sqrt(1 + q), q, q / (1 + q)


def _kappa_and_slope(k: Tensor, product: Tensor, delta: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    root = torch.rsqrt(delta)
    ratio = k * root
    angle = torch.atan(ratio)
    n = product + h * (k * k)
    value = k / 4 + (k * angle + n * root) * _PER_TURN
    slope = 0.25 + (angle + ratio * (1 + 2 * h + n * root * root)) * _PER_TURN
    return value, slope
