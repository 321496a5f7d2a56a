"""The dual functions of sinusoids of any amplitude, frequency and phase."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._dual import DualActivation
from ._exponential import exponential
from ._formula import Form, Formula


class DualSinusoid(DualActivation):
    """φ(x) = a sin(b x + c).

    With Q = b² q, K = b² k, m = (Q1 + Q2)/2 and C = cos 2c,

        κ  = a²/2 (exp(K - m) - C exp(-K - m)),
        κ̇ = a² b²/2 (exp(K - m) + C exp(-K - m)),

    from 2 sin s sin t = cos(s - t) - cos(s + t) and the characteristic function of a Gaussian
    variable, E cos(s) = exp(-Var s / 2) cos E s. The random features of the Gaussian kernel
    exp(-γ (x - y)²), √2 sin(√(2γ) x + π/4), are among them (Rahimi and Recht 2007).

    Args:
        amplitude: a.
        frequency: b.
        phase: c, in radians.
    """

    def __init__(self, amplitude: float = 1.0, frequency: float = 1.0, phase: float = 0.0) -> None:
        self.name = "sinusoid"
        self.amplitude = amplitude
        self.frequency = frequency
        self.phase = phase
        self._cosine = math.cos(2 * phase)
        self._half = amplitude**2 / 2

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = a²/2 (1 - C exp(-2Q)) and E[φ'(u)²] = a² b²/2 (1 + C exp(-2Q))."""
        decay = torch.expm1(-2 * self.frequency**2 * q)
        value = (1 - self._cosine) - self._cosine * decay
        slope = (1 + self._cosine) + self._cosine * decay
        return self._half * value, self._half * self.frequency**2 * slope

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        square = self.frequency**2
        k, m = square * k, square * (q1 / 2 + q2 / 2)
        # Both exponents are at most 0; `expm1` keeps small differences of the two.
        minus, plus = torch.expm1(k - m), torch.expm1(-k - m)
        value = (1 - self._cosine) + (minus - self._cosine * plus)
        slope = (1 + self._cosine) + (minus + self._cosine * plus)
        return self._half * value, self._half * square * slope

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(φ(u) - φ(v))²] and κ̇ without loss of digits for small d.

        With D = b² d and the gap exp(-Q1) - exp(-Q2), E[(φ(u) - φ(v))²] is

            a² [1 - exp(-D/2) - C/2 (gap² - 2 exp(-Q1 - Q2) (exp(D/2) - 1))].
        """
        square = self.frequency**2
        slope = self.pair((q1 + q2 - d) / 2, q1, q2)[1]
        d, q1, q2 = square * d, square * q1, square * q2
        gap = (torch.expm1(-q1) - torch.expm1(-q2)).square()
        # exp(D/2) alone may overflow; D/2 - Q1 - Q2 is -K - m, at most 0.
        grown = -torch.exp(d / 2 - (q1 + q2)) * torch.expm1(-d / 2)
        distance = -torch.expm1(-d / 2) - self._cosine * (gap / 2 - grown)
        return 2 * self._half * torch.where(distance < 0, 0.0, distance), slope

    def fused(self, form: Form) -> Formula:
        """Return statements for the same formulas, with the terms Q and exp(-Q) - 1."""
        square = self.frequency**2
        numbers = (square, self._cosine, self._half, self._half * square)

        def terms(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            q = square * variances[0]
            return (q, torch.expm1(-q)) if form.distance else (q,)

        cross = "cross = middle - 0.5 * p0 * k0" if form.distance else "cross = p0 * k0"
        lines = (
            "middle = 0.5 * (a0 + b0)",
            cross,
            "x = cross - middle",
            *exponential("same", form.double),
            "x = -cross - middle",
            *exponential("opposite", form.double),
            "t = t0 * (p3 * ((1.0 + p1) + (same + p1 * opposite)))",
        )
        if not form.distance:
            value = "k = p2 * ((1.0 - p1) + (same - p1 * opposite))"
            return Formula((*lines, value), numbers, terms)
        distance = (
            "x = -0.5 * p0 * k0",
            *exponential("fall", form.double),
            "gap = a1 - b1",
            "apart = -fall - p1 * (0.5 * gap * gap + (opposite + 1.0) * fall)",
            "k = 2.0 * p2 * max(apart, 0.0)",
        )
        return Formula((*lines, *distance), numbers, terms)
