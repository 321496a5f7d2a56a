"""Layers of independent weights: dense layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...activations import Form, Formula
from ._fused import Fused
from ._operation import Operation
from ._state import State, Variances
from ._taps import Taps


@dataclass(frozen=True)
class Affine(Operation):
    """A layer of independent weights: dense (one tap) or convolutional (`rows × columns` taps).

    `y = g W ⋆ x + h b` with independent weights W and biases b of zero mean and a fan-in of n
    gives, with the mean over channels and taps `⟨·⟩`,

        K ← a⟨K⟩ + b,    Θ ← a⟨Θ⟩ + c⟨K⟩ + d

    where a = n g² Var W, b = h² Var b, and the squared gradients of an output give c = n g² if
    the weights are trained, d = h² if the biases are.

    Attributes:
        rows: The taps along the first axis of positions.
        columns: The taps along the second axis.
        weight_variance: The number a.
        bias_variance: The number b, which is 0 without biases.
        weight_gradient: The number c, which is 0 if the weights are not among the parameters of Θ.
        bias_gradient: The number d, which is 0 if the biases are not among them.
    """

    rows: Taps
    columns: Taps
    weight_variance: float
    bias_variance: float
    weight_gradient: float
    bias_gradient: float

    @classmethod
    def ntk(
        cls,
        rows: Taps,
        columns: Taps,
        sigma_w: float,
        sigma_b: float,
        weight_trained: bool = True,
        bias_trained: bool = True,
    ) -> Affine:
        """Return a layer in NTK parameterization: g = sigma_w/√n, h = sigma_b, variances of 1.

        Args:
            rows: The taps along the first axis of positions.
            columns: The taps along the second axis.
            sigma_w: The scale of the weights.
            sigma_b: The scale of the biases; 0 without biases.
            weight_trained: Whether the weights are among the parameters of Θ.
            bias_trained: Whether the biases are.
        """
        a, b = sigma_w**2, sigma_b**2
        return cls(rows, columns, a, b, a * weight_trained, b * bias_trained)

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Apply the layer; distances do not contain the bias, which is the same in both images."""
        (s,) = inputs
        mean = self._mean_at_pairs if s.full else self._mean
        nngp = mean(s.nngp) * self.weight_variance
        if self.bias_variance and not s.distance:
            nngp = nngp + self.bias_variance
        ntk = s.ntk
        if ntk is not None:
            taken = ntk * self.weight_variance
            if self.weight_gradient:
                k = s.covariance(variances[0])
                taken = torch.add(taken, k, alpha=self.weight_gradient)
            ntk = mean(taken) if taken.ndim else taken
            if self.bias_gradient:
                ntk = (
                    ntk + self.bias_gradient
                    if ntk.ndim
                    else torch.full_like(nngp, self.bias_gradient)
                )
        return replace(s, nngp=nngp, ntk=ntk)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return `a⟨q⟩ + b`."""
        return self._mean(inputs[0]) * self.weight_variance + self.bias_variance

    def fused(self, form: Form) -> Fused:
        """Return a filter over the taps; with distances, ⟨K⟩ follows from ⟨q⟩ and ⟨d⟩."""
        a, b, c, d = (
            self.weight_variance / self._taps,
            self.bias_variance,
            self.weight_gradient / self._taps,
            self.bias_gradient,
        )
        taps = None if self._trivial else (self.rows, self.columns)
        if not form.distance:
            lines: tuple[str, ...] = ("k = p0 * k0 + p1", "t = p0 * t0 + (p2 * k0 + p3)")
            return Fused(Formula(lines, (a, b, c, d)), taps)
        lines = (
            "k = p0 * k0",
            # A value that is 0 in one image has a covariance of exactly 0, without rounding.
            "twice = a0 + b0 - k0 if min(a0, b0) > 0.0 else 0.0",
            "t = p0 * t0 + (p1 * twice + p2)",
        )

        def terms(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return (self._mean(variances[0]) * self._taps,)

        return Fused(Formula(lines, (a, c / 2, d), terms), taps)

    @property
    def cost(self) -> float:
        """A product and a sum for each tap, for one axis after the other."""
        return 4.0 * (len(self.rows.sources) + len(self.columns.sources))

    @property
    def _trivial(self) -> bool:
        return self.rows.trivial and self.columns.trivial

    @property
    def _taps(self) -> int:
        return len(self.rows.sources) * len(self.columns.sources)

    def _mean(self, a: Tensor) -> Tensor:
        """Return the mean over the taps of `a` `[..., P, Q]`, the same position in both images."""
        if self._trivial:
            return a
        a = _along(_along(a, a.ndim - 2, self.rows), a.ndim - 1, self.columns)
        return a / self._taps

    def _mean_at_pairs(self, a: Tensor) -> Tensor:
        """Return the mean over the taps, which move both positions, of `[..., P, Q, P', Q']`."""
        if self._trivial:
            return a
        a = _along_both(a, a.ndim - 4, a.ndim - 2, self.rows)
        a = _along_both(a, a.ndim - 3, a.ndim - 1, self.columns)
        return a / self._taps


def _along(a: Tensor, dim: int, taps: Taps) -> Tensor:
    """Return the sum over the taps along one axis of positions."""
    if taps.trivial:
        return a
    shape = list(a.shape)
    shape[dim] = taps.size_out
    out = torch.zeros(shape, dtype=a.dtype, device=a.device)
    for runs in taps.runs:
        for run in runs:
            _part(out, {dim: run.out}).add_(_part(a, {dim: run.source}))
    return out


def _along_both(a: Tensor, dim1: int, dim2: int, taps: Taps) -> Tensor:
    """Return the sum over the taps, applied to the same axis of positions in both images."""
    if taps.trivial:
        return a
    shape = list(a.shape)
    shape[dim1] = shape[dim2] = taps.size_out
    out = torch.zeros(shape, dtype=a.dtype, device=a.device)
    for runs in taps.runs:
        for one in runs:
            for two in runs:
                target = _part(out, {dim1: one.out, dim2: two.out})
                target.add_(_part(a, {dim1: one.source, dim2: two.source}))
    return out


def _part(a: Tensor, slices: dict[int, slice]) -> Tensor:
    return a[tuple(slices.get(d, slice(None)) for d in range(a.ndim))]
