"""Layer and group normalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...activations import Form, Formula
from ._fused import Fused
from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Normalization(Operation):
    """Division by the standard deviation over all features of an image, or of each position.

    `K ← K/(s s')` and `Θ ← Θ/(s s')` with `s² = ⟨K(x, x)⟩ + eps`, where ⟨·⟩ is the mean over
    positions, or with `each_position` the value at each position. No mean is subtracted, because
    that of Gaussian features is 0 in the limit. A trained gain of 1 adds K to Θ, and a trained
    shift adds 1.

    Attributes:
        eps: The number that is added to the variance.
        gain_trained: Whether there is a gain per channel that is among the parameters of Θ.
        shift_trained: Whether there is such a shift per channel.
        each_position: Whether every position has its own standard deviation.
    """

    eps: float
    gain_trained: bool = False
    shift_trained: bool = False
    each_position: bool = False
    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Divide by the standard deviations, without cancellation where distances are small.

        With a = √q and the new variances a²/s², the distance is the sum of a radial part and of a
        part that only the angle determines, d - (a - a')²:

            d ← (a/s - a'/s')² + (d - (a - a')²) / (s s').
        """
        (s,), (q,) = inputs, variances
        assert q is not None
        axes = ((-4, -3), (-2, -1)) if s.full else ((-2, -1), (-2, -1))
        s1, s2 = (self._deviation(v, axis) for v, axis in zip(q, axes, strict=True))
        product = s1 * s2
        if s.distance:
            a1, a2 = torch.sqrt(q[0]), torch.sqrt(q[1])
            nngp = (a1 / s1 - a2 / s2) ** 2 + (s.nngp - (a1 - a2) ** 2) / product
            covariance = (q[0] / s1**2 + q[1] / s2**2 - nngp) / 2
        else:
            nngp = covariance = s.nngp / product
        ntk = s.ntk
        if ntk is not None:
            ntk = ntk / product if ntk.ndim else ntk
            ntk = ntk + covariance if self.gain_trained else ntk
            if self.shift_trained:
                ntk = ntk + 1 if ntk.ndim else torch.ones_like(nngp)
        return replace(s, nngp=nngp, ntk=ntk)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return q/s²."""
        return inputs[0] / self._deviation(inputs[0], (-2, -1)) ** 2

    def fused(self, form: Form) -> Fused:
        """Return a pointwise formula in s of both images; see `state`."""
        numbers = (float(self.gain_trained), float(self.shift_trained))
        tangent = "t = t0 * (a0 * b0) + (p0 * covariance + p1)"
        if not form.distance:
            lines: tuple[str, ...] = ("k = k0 * (a0 * b0)", "covariance = k", tangent)
            return Fused(Formula(lines, numbers, lambda v: self._terms(v)[:1]))
        lines = (
            "radial = a1 * a0 - b1 * b0",
            "between = a1 - b1",
            "k = radial * radial + (k0 - between * between) * (a0 * b0)",
            "covariance = 0.5 * ((a1 * a0) * (a1 * a0) + (b1 * b0) * (b1 * b0) - k)",
            tangent,
        )
        return Fused(Formula(lines, numbers, self._terms))

    def _terms(self, variances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return 1/s and √q at every position."""
        (q,) = variances
        return (1.0 / self._deviation(q, (-2, -1))).expand_as(q), torch.sqrt(q)

    def _deviation(self, q: Tensor, axes: tuple[int, int]) -> Tensor:
        """Return the standard deviation s of each image, in a shape that broadcasts with `q`."""
        return torch.sqrt((q if self.each_position else q.mean(dim=axes, keepdim=True)) + self.eps)

    @property
    def cost(self) -> float:
        """Two quotients and two sums."""
        return 4.0
