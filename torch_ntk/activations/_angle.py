"""The angle whose cosine is known, in a form that compiles to few instructions."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import Chebyshev, chebyshev
from torch import Tensor


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = coefficients[-2] + coefficients[-1] * x
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


def _ratio(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.arccos(x) / np.sqrt(1 - x))


def _coefficients(terms: int) -> tuple[float, ...]:
    """Of 1, u, u², … for arccos(x) / √(1 - x) with x = (u + 1)/2."""
    series = Chebyshev.interpolate(_ratio, terms - 1, domain=[0, 1])
    return tuple(float(v) for v in chebyshev.cheb2poly(series.coef))


# The ratio is smooth on [0, 1]; its nearest singularity is x = -1, so the coefficients of its
# Chebyshev series fall by a factor 3 + √8 each.
_COEFFICIENTS = {torch.float32: _coefficients(9), torch.float64: _coefficients(21)}

# Keeps the square roots below from an infinite derivative at ±1, where it is given as 0; far
# below what changes a value.
_LEAST = 1e-36


def angle_and_sine(c: Tensor) -> tuple[Tensor, Tensor]:
    """arccos(c) and √(1 - c²).

    By a polynomial where it is compiled: in such a loop `torch.acos` costs four times as much and
    `torch.atan2` twice. Otherwise each term would be a pass over memory.

    Args:
        c: Cosines, from -1 to 1.
    """
    if not torch.compiler.is_compiling():
        sine = ((1.0 - c) * (1.0 + c)).clamp(min=_LEAST).sqrt()
        return torch.atan2(sine, c), sine
    x = c.abs()
    root = (1.0 - x).clamp(min=_LEAST).sqrt()
    acute = root * _ratio_at(2.0 * x - 1.0)
    return torch.where(c < 0, math.pi - acute, acute), root * (1.0 + x).sqrt()


def angle_and_sine_beyond(excess: Tensor) -> tuple[Tensor, Tensor]:
    """θ and sin θ with the relative accuracy of 1 - cos θ, which is `excess`, from 0 to 2."""
    if not torch.compiler.is_compiling():
        near, far = (e.clamp(min=_LEAST).sqrt() for e in (excess, 2.0 - excess))
        return 2.0 * torch.atan2(near, far), near * far
    obtuse = excess > 1.0
    e = torch.where(obtuse, 2.0 - excess, excess)
    root = e.clamp(min=_LEAST).sqrt()
    acute = root * _ratio_at(1.0 - 2.0 * e)
    return torch.where(obtuse, math.pi - acute, acute), root * (2.0 - e).sqrt()


def _ratio_at(u: Tensor) -> Tensor:
    """arccos(x) / √(1 - x) at x = (u + 1)/2.

    Even and odd powers apart: two chains of products that a processor works on at once.
    """
    coefficients = _COEFFICIENTS[u.dtype]
    square = u * u
    return _horner(coefficients[0::2], square) + u * _horner(coefficients[1::2], square)
