"""Activations with their derivatives in NumPy, and a two-dimensional quadrature as oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import erf, expit, ndtr
from torch import Tensor

from torch_ntk.activations import (
    DualActivation,
    DualAffine,
    DualCos,
    DualErf,
    DualExp,
    DualGabor,
    DualGaussian,
    DualGELU,
    DualPolynomial,
    DualQuadrature,
    DualRectifiedPower,
    DualRectifier,
    DualSin,
    DualSinusoid,
    DualSquare,
    hermite_coefficients,
)

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class DualCase:
    """Dual functions and what they are the dual functions of.

    Attributes:
        dual: Under test.
        value: φ.
        derivative: φ'.
    """

    dual: DualActivation
    value: Function
    derivative: Function

    @property
    def name(self) -> str:
        return self.dual.name


def _density(x: Array) -> Array:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def named(dual: DualActivation, name: str) -> DualActivation:
    """The same under another name than its kind has."""
    dual.name = name
    return dual


CLOSED = [
    DualCase(DualRectifier(1.0, 0.0, "relu"), lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    DualCase(
        DualRectifier(1.0, 0.2, "leaky_relu"),
        lambda x: np.where(x > 0, x, 0.2 * x),
        lambda x: np.where(x > 0, 1.0, 0.2),
    ),
    DualCase(DualRectifier(1.0, -1.0, "abs"), np.abs, np.sign),
    DualCase(
        DualRectifier(-0.5, 2.0, "any_slopes"),
        lambda x: np.where(x > 0, -0.5 * x, 2 * x),
        lambda x: np.where(x > 0, -0.5, 2.0),
    ),
    DualCase(DualAffine(2.0, -0.5), lambda x: 2 * x - 0.5, lambda x: np.full_like(x, 2.0)),
    DualCase(DualErf(), erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x)),
    DualCase(DualGELU(), lambda x: x * ndtr(x), lambda x: ndtr(x) + x * _density(x)),
    DualCase(DualSin(), np.sin, np.cos),
    DualCase(DualCos(), np.cos, lambda x: -np.sin(x)),
    DualCase(DualExp(), np.exp, np.exp),
    DualCase(DualSquare(), np.square, lambda x: 2 * x),
    DualCase(
        named(DualExp(-0.5, 0.4), "scaled_exp"),
        lambda x: -0.5 * np.exp(0.4 * x),
        lambda x: -0.2 * np.exp(0.4 * x),
    ),
    DualCase(
        DualGaussian(0.7, -0.5),
        lambda x: 0.7 * np.exp(-x * x / 2),
        lambda x: -0.7 * x * np.exp(-x * x / 2),
    ),
    DualCase(
        named(DualGaussian(1.0, 0.02), "growing_gaussian"),
        lambda x: np.exp(0.02 * x * x),
        lambda x: 0.04 * x * np.exp(0.02 * x * x),
    ),
    DualCase(
        DualPolynomial([0.1, 1.0, -0.3, 0.2]),
        lambda x: 0.1 + x - 0.3 * x**2 + 0.2 * x**3,
        lambda x: 1 - 0.6 * x + 0.6 * x**2,
    ),
    DualCase(DualPolynomial([0, 0, 0, 0, 1], "fourth power"), lambda x: x**4, lambda x: 4 * x**3),
    DualCase(
        DualPolynomial(hermite_coefficients(3), "hermite"),
        lambda x: (x**3 - 3 * x) / math.sqrt(6),
        lambda x: (3 * x**2 - 3) / math.sqrt(6),
    ),
    DualCase(
        DualRectifiedPower(2), lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)
    ),
    DualCase(
        DualRectifiedPower(3), lambda x: np.maximum(x, 0) ** 3, lambda x: 3 * np.maximum(x, 0) ** 2
    ),
    DualCase(
        DualSinusoid(0.7, 1.5, 0.3),
        lambda x: 0.7 * np.sin(1.5 * x + 0.3),
        lambda x: 1.05 * np.cos(1.5 * x + 0.3),
    ),
    DualCase(
        DualGabor(),
        lambda x: np.exp(-x * x) * np.sin(x),
        lambda x: np.exp(-x * x) * (np.cos(x) - 2 * x * np.sin(x)),
    ),
]
EXPANDED = [
    DualCase(DualQuadrature(torch.tanh), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    DualCase(DualQuadrature(torch.sigmoid), expit, lambda x: expit(x) * expit(-x)),
    DualCase(
        DualQuadrature(F.silu),
        lambda x: x * expit(x),
        lambda x: expit(x) * (1 + x * expit(-x)),
    ),
    DualCase(DualQuadrature(F.softplus), lambda x: np.logaddexp(0, x), expit),
    DualCase(DualQuadrature(F.elu), _elu, lambda x: np.exp(np.minimum(x, 0))),
]

VARIANCES = [(1.0, 1.0), (0.3, 2.0), (1.7, 0.6)]
CORRELATIONS = [-1.0, -0.99, 0.0, 0.5, 0.999, 1.0]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def _panels(edges: list[float], per_edge: int) -> tuple[Array, Array]:
    ends = np.concatenate(
        [np.linspace(a, b, per_edge + 1)[:-1] for a, b in pairwise(edges)] + [np.array(edges[-1:])]
    )
    middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    nodes = middle[:, None] + half[:, None] * _NODES
    return nodes.ravel(), (half[:, None] * _WEIGHTS).ravel()


_RADII, _RADIAL = _panels([0.0, 12.0], 8)
_RADIAL = _RADIAL * _RADII * np.exp(-_RADII * _RADII / 2) / (2 * math.pi)


def expectation(f: Function, g: Function, q1: float, q2: float, c: float) -> float:
    """E[f(u) g(v)] in polar coordinates, with panels that end where u or v changes its sign."""
    angle = math.acos(c)
    zeros = [math.pi / 2, -math.pi / 2, angle + math.pi / 2, angle - math.pi / 2]
    wrapped = [math.remainder(a, 2 * math.pi) for a in zeros]
    edges = sorted({-math.pi, math.pi, *wrapped})
    t, weight = _panels(edges, 2)
    u = math.sqrt(q1) * _RADII[:, None] * np.cos(t)
    v = math.sqrt(q2) * _RADII[:, None] * np.cos(t - angle)
    return float(_RADIAL @ (f(u) * g(v)) @ weight)


@cache
def _known(case: DualCase, q1: float, q2: float, c: float) -> tuple[float, float]:
    return (
        expectation(case.value, case.value, q1, q2, c),
        expectation(case.derivative, case.derivative, q1, q2, c),
    )


def oracle(case: DualCase, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """κ and κ̇ for vectors of covariances and variances."""
    rows = [
        _known(case, float(b), float(c), max(-1.0, min(1.0, float(a / (b * c).sqrt()))))
        for a, b, c in zip(k, q1, q2, strict=True)
    ]
    value, slope = zip(*rows, strict=True)
    return torch.tensor(value, dtype=torch.float64), torch.tensor(slope, dtype=torch.float64)


def grid(
    correlations: list[float] = CORRELATIONS, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors k, q1, q2 over all variances and correlations."""
    rows = [(c * math.sqrt(a * b), a, b) for a, b in VARIANCES for c in correlations]
    k, q1, q2 = torch.tensor(rows, dtype=dtype).unbind(-1)
    return k, q1, q2
