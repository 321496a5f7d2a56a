"""The dual functions of this package's own activation modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ... import nn as ntk
from ...activations import (
    DualActivation,
    DualAffine,
    DualCos,
    DualErf,
    DualExp,
    DualGabor,
    DualGaussian,
    DualPolynomial,
    DualRectifiedPower,
    DualRectifier,
    DualSin,
    DualSinusoid,
    hermite_coefficients,
    register_dual,
)


def power(degree: int) -> DualActivation:
    """Return the dual functions of xⁿ."""
    if degree == 1:
        return DualAffine(1.0, 0.0, "monomial 1")
    return DualPolynomial([0.0] * degree + [1.0], f"monomial {degree}")


def _rectified(m: ntk.RectifiedMonomial) -> DualActivation:
    return DualRectifier(1.0, 0.0, "relu") if m.degree == 1 else DualRectifiedPower(m.degree)


def _sinusoid(m: ntk.Sinusoid) -> DualActivation:
    return DualSinusoid(m.amplitude, m.frequency, m.phase)


OWN: dict[type[nn.Module], Callable[[Any], DualActivation]] = {
    ntk.Erf: lambda _: DualErf(),
    ntk.Sin: lambda _: DualSin(),
    ntk.Cos: lambda _: DualCos(),
    ntk.Abs: lambda _: DualRectifier(1.0, -1.0, "abs"),
    ntk.ABReLU: lambda m: DualRectifier(m.positive, m.negative, "abrelu"),
    ntk.Exp: lambda m: DualExp(m.scale, m.rate),
    ntk.Gaussian: lambda m: DualGaussian(m.scale, m.rate),
    ntk.Polynomial: lambda m: DualPolynomial(m.coefficients),
    ntk.Monomial: lambda m: power(m.degree),
    ntk.RectifiedMonomial: _rectified,
    ntk.Hermite: lambda m: DualPolynomial(hermite_coefficients(m.degree), f"hermite {m.degree}"),
    ntk.Sinusoid: _sinusoid,
    ntk.RBF: _sinusoid,
    ntk.Gabor: lambda _: DualGabor(),
}

for _kind, _dual in OWN.items():
    register_dual(_kind, _dual)
