"""Elementwise activations, and trained gains before an activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...activations import DualActivation, Form, Formula
from ._fused import Fused
from ._operation import Operation
from ._state import IdenticalImages, State, Variances, same_positions


@dataclass(frozen=True)
class Activation(Operation):
    """An elementwise φ of a Gaussian value: `K ← E φ(u)φ(v)`, `Θ ← Θ · E φ'(u)φ'(v)`."""

    dual: DualActivation
    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Apply the dual functions of φ to covariances or to distances."""
        (s,), (q,) = inputs, variances
        assert q is not None
        pair = self.dual.pair_from_distance if s.distance else self.dual.pair
        nngp, slope = pair(s.nngp, *q)
        ntk = s.ntk
        if ntk is not None and ntk.ndim:
            ntk = ntk * slope
        return replace(s, nngp=nngp, ntk=ntk)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return E φ(u)²."""
        return self.dual.diagonal(inputs[0])[0]

    def with_identical(
        self, made: State, inputs: Sequence[State], identical: IdenticalImages
    ) -> State:
        """Put in E φ(u)² and Θ · E φ'(u)² at the same position."""
        (s,), (q,) = inputs, identical.variances
        assert q is not None
        at = identical.rows, identical.columns
        kappa, slope = self.dual.diagonal(q)
        nngp, ntk = made.nngp.clone(), made.ntk
        same_positions(nngp, s.full)[at] = kappa
        if ntk is not None and ntk.ndim:
            assert s.ntk is not None
            ntk = ntk.clone()
            same_positions(ntk, s.full)[at] = same_positions(s.ntk, s.full)[at] * slope
        return replace(made, nngp=nngp, ntk=ntk)

    def fused(self, form: Form) -> Fused | None:
        """Return the formula of the dual, with E φ(u)² and Θ · E φ'(u)² for identical images."""
        formula = self.dual.fused(form) if self._formula_is_its_own else None
        if formula is None or form.distance:  # a distance of 0 needs no correction
            return None if formula is None else Fused(formula)

        def exact(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return self.dual.diagonal(variances[0])

        same = Formula(("k = a0", "t = t0 * a1"), formula.numbers, exact)
        return Fused(formula, exact=same)

    @property
    def _formula_is_its_own(self) -> bool:
        """Whether the dual's formula belongs to the class that defines its dual functions.

        A subclass that overrides the dual functions inherits a formula that does not match them.
        """
        classes = type(self.dual).__mro__
        own = {name: next(i for i, c in enumerate(classes) if name in vars(c))
               for name in ("fused", "pair", "diagonal", "pair_from_distance")}  # fmt: skip
        return own["fused"] <= min(own["pair"], own["diagonal"], own["pair_from_distance"])

    @property
    def cost(self) -> float:
        """The cost of the arc cosine kernels, about: a correlation, a root and an angle."""
        return 25.0


@dataclass(frozen=True)
class Gained(Operation):
    """φ(g u) of a Gaussian value, with a trained gain g = 1: `K = K₁`, `Θ = Θ₁ + K₂`.

    The first input is φ(u). The second is u φ'(u), the derivative of φ(g u) with respect to g.
    """

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Add to Θ the covariance of the second input, the contribution of the trained gain."""
        s, by_gain = inputs
        ntk = None if s.ntk is None else s.ntk + by_gain.covariance(variances[1])
        return replace(s, ntk=ntk)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the variance of φ(u)."""
        return inputs[0]

    def fused(self, form: Form) -> Fused:
        """Return a sum as formula; K₂ follows from the distance and the variances."""
        if not form.distance:
            return Fused(Formula(("k = k0", "t = t0 + k1")))
        lines = ("k = k0", "t = t0 + 0.5 * (a0 + b0 - k1)")
        return Fused(Formula(lines, terms=lambda variances: (variances[1],)))

    @property
    def cost(self) -> float:
        """One sum."""
        return 1.0
