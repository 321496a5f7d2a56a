"""The error function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._dual import DualActivation


class DualErf(DualActivation):
    """φ(x) = erf x.

    With D = 1 + 2 (q1 + q2) + 4 (q1 q2 - k²),

        κ = (2/π) arctan(2k / √D),    κ̇ = (4/π) / √D.

    The first is (2/π) arcsin(2k / √((1 + 2 q1)(1 + 2 q2))) of Williams 1996, "Computing with
    Infinite Networks", in a form that is as accurate near ±1 as elsewhere.
    """

    name = "erf"
    compiles = True

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """E[φ(u)²] = (2/π) arctan(2q / √(1 + 4q)) and E[φ'(u)²] = (4/π) / √(1 + 4q)."""
        root = torch.sqrt(1 + 4 * q)
        return torch.atan(2 * q / root) * (2 / math.pi), (4 / math.pi) / root

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`."""
        d = ((1 + 2 * q1) + 2 * q2) + 4 * (q1 * q2 - k * k)
        # D is at least 1; rounding takes it below only where the variances exceed the inverse
        # precision. (The bound is not 1, at which `clamp` would lose the derivative.)
        root = d.clamp(min=0.5).sqrt()
        return torch.atan(2 * k / root) * (2 / math.pi), (4 / math.pi) / root
