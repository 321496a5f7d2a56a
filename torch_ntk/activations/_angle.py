"""The angle whose cosine is known, of tensors and for fused loops."""

from __future__ import annotations

import torch
from torch import Tensor

from ._formula import polynomial

# arcsin(√z) / √z on [0, 1/4] by its Chebyshev series. The nearest singularity, z = 1, is so far
# away that the coefficients of the series fall by a factor 7 + √48 each: errors of 5e-9 and 2e-16.
_ARCSINE = {
    False: (
        0.999999995983738, 0.16666782005775338, 0.07494696687423973, 0.045520635631714566,
        0.02399399965364759, 0.04241737375979984,
    ),
    True: (
        1.0, 0.16666666666664942, 0.07500000000385201, 0.044642856805998936, 0.03038195969768514,
        0.022371749733164054, 0.01735977964134998, 0.01388484282640208, 0.012170138592391726,
        0.0065293020047365695, 0.019513468251252167, -0.016187392271599134, 0.03187962140081284,
    ),
}  # fmt: skip

# Keeps the square root below from an infinite derivative at ±1, where it is given as 0; far below
# what changes a value.
_LEAST = 1e-36


def angle_and_sine(c: Tensor) -> tuple[Tensor, Tensor]:
    """arccos(c) and √(1 - c²) for cosines from -1 to 1."""
    sine = ((1.0 - c) * (1.0 + c)).clamp(min=_LEAST).sqrt()
    return torch.atan2(sine, c), sine


def acute_angle(double: bool) -> tuple[str, ...]:
    """Statements for the angle `acute` in [0, π/2] with cosine `x`, and for its `sine`.

    With `e` = 1 - x given too, both are relatively accurate where the angle is small:

        acute = 2 arcsin √(e/2),       sine = 2 √(e/2) √(1 - e/2)   for x > 1/2,
        acute = π/2 - arcsin x,        sine = √(1 - x²)             otherwise,

    so that one polynomial serves both, and two square roots are all that is not a sum or product.
    """
    return (
        "small = e < 0.5",
        "half = 0.5 * e",
        "root = sqrt(half)",
        "z = half if small else x * x",
        *polynomial("ratio", _ARCSINE[double], "z"),
        "arcsine = (root if small else x) * ratio",
        "other = sqrt(1.0 - z)",
        "acute = arcsine + arcsine if small else 1.5707963267948966 - arcsine",
        "sine = (root + root) * other if small else other",
    )
