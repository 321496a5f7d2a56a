"""The dual functions of the sine and the cosine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dual import DualActivation
from ._exponential import exponential
from ._formula import Form, Formula


class DualSin(DualActivation):
    """φ(x) = sin x.

        κ = exp(-(q1 + q2)/2) sinh k,    κ̇ = exp(-(q1 + q2)/2) cosh k,

    from E[cos(u ∓ v)] = exp(-(q1 + q2)/2 ± k), the characteristic function of a Gaussian variable.
    """

    name = "sin"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[sin² u] = (1 - exp(-2q))/2 and E[cos² u] = (1 + exp(-2q))/2."""
        decay = torch.expm1(-2 * q) / 2
        return -decay, 1 + decay

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        return _sinh_and_cosh(k, q1, q2)

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(sin u - sin v)²] = E[(1 - cos(u - v))(1 + cos(u + v))], and κ̇."""
        difference, product = _parts_of_distance(d, q1, q2)
        slope = _sinh_and_cosh((q1 + q2 - d) / 2, q1, q2)[1]
        return _not_negative(difference + product), slope

    def fused(self, form: Form) -> Formula:
        """Return statements for the same formulas; see `_formula`."""
        return _formula(form, odd=True)


class DualCos(DualActivation):
    """φ(x) = cos x.

        κ = exp(-(q1 + q2)/2) cosh k,    κ̇ = exp(-(q1 + q2)/2) sinh k;

    see `DualSin`.
    """

    name = "cos"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[cos² u] = (1 + exp(-2q))/2 and E[sin² u] = (1 - exp(-2q))/2."""
        decay = torch.expm1(-2 * q) / 2
        return 1 + decay, -decay

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        odd, even = _sinh_and_cosh(k, q1, q2)
        return even, odd

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(cos u - cos v)²] = E[(1 - cos(u - v))(1 - cos(u + v))], and κ̇."""
        difference, product = _parts_of_distance(d, q1, q2)
        slope = _sinh_and_cosh((q1 + q2 - d) / 2, q1, q2)[0]
        return _not_negative(difference - product), slope

    def fused(self, form: Form) -> Formula:
        """Return statements for the same formulas; see `_formula`."""
        return _formula(form, odd=False)


def _formula(form: Form, odd: bool) -> Formula:
    """Return the formula of the sine (`odd`) or of the cosine.

    The terms of an image are q and, for distances, exp(-q) - 1. The expressions are those of `pair`
    and `pair_from_distance`; `same` and `opposite` are exp(±k - (q1 + q2)/2) - 1.
    """
    same_and_opposite = (
        "x = cross - middle",
        *exponential("same", form.double),
        "x = -cross - middle",
        *exponential("opposite", form.double),
        "sine = 0.5 * (same - opposite)",
        "cosine = 1.0 + 0.5 * (same + opposite)",
    )
    kappa, slope = ("sine", "cosine") if odd else ("cosine", "sine")
    if not form.distance:
        lines = ("cross = k0", "middle = 0.5 * (a0 + b0)", *same_and_opposite)
        return Formula((*lines, f"k = {kappa}", f"t = t0 * {slope}"), terms=tuple)
    lines = (
        "middle = 0.5 * (a0 + b0)",
        "cross = middle - 0.5 * k0",
        *same_and_opposite,
        "x = -0.5 * k0",
        *exponential("fall", form.double),
        "gap = a1 - b1",
        # exp(d/2 - (q1 + q2)) is exp(-k - (q1 + q2)/2).
        "product = -(opposite + 1.0) * fall - 0.5 * gap * gap",
        "k = max(product - fall, 0.0)" if odd else "k = max(-product - fall, 0.0)",
        f"t = t0 * {slope}",
    )
    return Formula(lines, terms=_terms)


def _terms(variances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return variances[0], torch.expm1(-variances[0])


def _sinh_and_cosh(k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(-(q1 + q2)/2) sinh k and exp(-(q1 + q2)/2) cosh k.

    Both exponents are at most 0, so nothing overflows where sinh k alone would; `expm1` keeps the
    relative accuracy of the sine where the variances are small.
    """
    m = q1 / 2 + q2 / 2
    half_same = torch.expm1(k - m) / 2
    half_opposite = torch.expm1(-k - m) / 2
    return half_same - half_opposite, 1 + (half_same + half_opposite)


def _parts_of_distance(d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[1 - cos(u - v)] and E[(1 - cos(u - v)) cos(u + v)].

    Both are as accurate relative to d as d itself. Their sum is E[(sin u - sin v)²] and their
    difference is E[(cos u - cos v)²].
    """
    difference = -torch.expm1(-d / 2)
    gap = (torch.expm1(-q1) - torch.expm1(-q2)).square() / 2
    return difference, torch.exp(d / 2 - (q1 + q2)) * difference - gap


def _not_negative(distance: Tensor) -> Tensor:
    """Return the distance, with 0 for negative values; `clamp` would lose the derivative at 0."""
    return torch.where(distance < 0, 0.0, distance)
