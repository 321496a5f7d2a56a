"""Products of independent features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ._operation import Operation
from ._state import State, Variances, zero


@dataclass(frozen=True)
class Product(Operation):
    """`y = u v` of values whose features are independent: `K ← K_u K_v`, `Θ ← Θ_u K_v + K_u Θ_v`.

    The products of derivatives of u and derivatives of v vanish in the mean over channels.
    """

    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return all pairs of positions if both inputs have them, else the same position."""
        full = all(s.full for s in inputs)
        one, two = inputs if full else [s.same_positions() for s in inputs]
        k1, k2 = one.covariance(variances[0]), two.covariance(variances[1])
        ntk = None
        if one.ntk is not None and two.ntk is not None:
            ntk = one.ntk * k2 + k1 * two.ntk if one.ntk.ndim or two.ntk.ndim else zero(k1)
        if not one.distance:
            return State(k1 * k2, ntk, False, full)
        assert variances[0] is not None
        assert variances[1] is not None
        d = _distance(one.nngp, two.nngp, variances[0], variances[1])
        return State(d, ntk, True, full)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return q_u q_v."""
        return inputs[0] * inputs[1]

    @property
    def cost(self) -> float:
        """Three products and a sum."""
        return 4.0


def _distance(d1: Tensor, d2: Tensor, first: Variances, second: Variances) -> Tensor:
    """Return E(u v - u' v')² from the distances of u and of v, without cancellation.

    With s_u and s_v the means over the two images of the variances of u and of v,
    `q_u q_v + q_u' q_v' - 2 k_u k_v = (q_u - q_u')(q_v - q_v')/2 + s_u d_v + s_v d_u - d_u d_v/2`.
    """
    (a1, a2), (b1, b2) = first, second
    s1, s2 = (a1 + a2) / 2, (b1 + b2) / 2
    return (a1 - a2) * (b1 - b2) / 2 + s1 * d2 + s2 * d1 - d1 * d2 / 2
