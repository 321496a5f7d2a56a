"""Sine and cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dual import DualActivation


class DualSin(DualActivation):
    """φ(x) = sin x.

        κ = exp(-(q1 + q2)/2) sinh k,    κ̇ = exp(-(q1 + q2)/2) cosh k,

    from E[cos(u ∓ v)] = exp(-(q1 + q2)/2 ± k), the characteristic function of a Gaussian variable.
    """

    name = "sin"
    compiles = True

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """E[sin² u] = (1 - exp(-2q))/2 and E[cos² u] = (1 + exp(-2q))/2."""
        decay = torch.expm1(-2 * q) / 2
        return -decay, 1 + decay

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`."""
        return _sinh_and_cosh(k, q1, q2)

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """E[(sin u - sin v)²] = E[(1 - cos(u - v))(1 + cos(u + v))], and κ̇."""
        difference, product = _parts(d, q1, q2)
        slope = _sinh_and_cosh((q1 + q2 - d) / 2, q1, q2)[1]
        return _not_negative(difference + product), slope


class DualCos(DualActivation):
    """φ(x) = cos x.

        κ = exp(-(q1 + q2)/2) cosh k,    κ̇ = exp(-(q1 + q2)/2) sinh k;

    see `DualSin`.
    """

    name = "cos"
    compiles = True

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """E[cos² u] = (1 + exp(-2q))/2 and E[sin² u] = (1 - exp(-2q))/2."""
        decay = torch.expm1(-2 * q) / 2
        return 1 + decay, -decay

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`."""
        odd, even = _sinh_and_cosh(k, q1, q2)
        return even, odd

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """E[(cos u - cos v)²] = E[(1 - cos(u - v))(1 - cos(u + v))], and κ̇."""
        difference, product = _parts(d, q1, q2)
        slope = _sinh_and_cosh((q1 + q2 - d) / 2, q1, q2)[0]
        return _not_negative(difference - product), slope


def _sinh_and_cosh(k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-(q1 + q2)/2) times sinh k and cosh k.

    Both exponents are at most 0, so nothing overflows where sinh k alone would; `expm1` keeps the
    relative accuracy of the sine where the variances are small.
    """
    m = q1 / 2 + q2 / 2
    half_same = torch.expm1(k - m) / 2
    half_opposite = torch.expm1(-k - m) / 2
    return half_same - half_opposite, 1 + (half_same + half_opposite)


def _parts(d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """E[1 - cos(u - v)] and E[(1 - cos(u - v)) cos(u + v)], as accurate as d where it is small."""
    difference = -torch.expm1(-d / 2)
    gap = (torch.expm1(-q1) - torch.expm1(-q2)).square() / 2
    return difference, torch.exp(d / 2 - (q1 + q2)) * difference - gap


def _not_negative(distance: Tensor) -> Tensor:
    """Without negative rounding; unlike that of `clamp`, the derivative at 0 is kept."""
    return torch.where(distance < 0, 0.0, distance)
