"""Constant factors, sums of independent values, and concatenated channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...activations import Form, Formula
from ._fused import Fused
from ._operation import Operation
from ._state import State, Variances, zero


@dataclass(frozen=True)
class WeightedSum(Operation):
    """`K ← Σ w_i K_i`, `Θ ← Σ w_i Θ_i`.

    A constant factor c is the weight c². Uncorrelated values are added with weights of 1, since
    the cross terms of (u + u')(v + v') vanish. The kernel of concatenated channels is the mean over
    all channels, so the weight of each part is its fraction of the channels.
    """

    weights: tuple[float, ...]

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return all pairs of positions if all inputs have them, else the same position."""
        full = all(s.full for s in inputs)
        states = inputs if full else [s.same_positions() for s in inputs]
        nngp = self._sum([s.nngp for s in states])
        ntk = None
        if states[0].ntk is not None:
            ntk = self._sum([s.ntk for s in states if s.ntk is not None])
            ntk = ntk if ntk.ndim else zero(nngp)
        return State(nngp, ntk, states[0].distance, full)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return Σ w_i q_i."""
        return self._sum(inputs)

    def _sum(self, tensors: Sequence[Tensor]) -> Tensor:
        total = tensors[0] * self.weights[0]
        for tensor, weight in zip(tensors[1:], self.weights[1:], strict=True):
            total = total + tensor * weight
        return total

    def fused(self, form: Form) -> Fused:
        """Return one formula for all inputs, which holds for covariances and distances."""
        lines = tuple(
            f"{of} = " + " + ".join(f"p{i} * {of}{i}" for i in range(len(self.weights)))
            for of in "kt"
        )
        return Fused(Formula(lines, self.weights))

    @property
    def cost(self) -> float:
        """A product and a sum for each input."""
        return 4.0 * len(self.weights)
