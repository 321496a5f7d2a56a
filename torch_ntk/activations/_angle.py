"""The arc cosine with the sine of its angle, for tensors and as statements for fused loops."""

from __future__ import annotations

import torch
from torch import Tensor

from ._formula import polynomial

# Coefficients of powers of z for arcsin(√z) / √(z (1 - z)) on [0, 1/4], from its Chebyshev series;
# `True` stands for float64. The nearest singularity, z = 1, is so far away that the coefficients
# of the series fall by a factor 7 + √48 each, so the errors are 7e-9 and 1e-16.
_ARCSINE = {
    False: (
        1.0, 0.6666642348188259, 0.5334850556245776, 0.4536271829762203, 0.4445011087629926,
        0.16380240317445421, 0.845690609215189,
    ),
    True: (
        1.0, 0.6666666666667365, 0.5333333333153877, 0.45714285895727874, 0.4063491108383584,
        0.3694113723128051, 0.3409314093424643, 0.3190944164343365, 0.2916228121043443,
        0.3360922430609982, 0.031496634295149754, 0.9863873169230363, -1.1254700163784694,
        1.5612972009753123,
    ),
}  # fmt: skip

# 1 - c² is raised to at least this before its square root is taken, so that the root has a finite
# derivative: `clamp` makes it 0 where the true one is infinite. No value changes, since 1 - c² is
# either 0 or above 1e-16, and the root, 1e-18, is below the rounding error of π in float64.
SMALLEST_SQUARED_SINE = 1e-36


def angle_and_sine(c: Tensor) -> tuple[Tensor, Tensor]:
    """Return arccos(c) and √(1 - c²) for cosines c from -1 to 1, in the shape of c."""
    sine = ((1.0 - c) * (1.0 + c)).clamp(min=SMALLEST_SQUARED_SINE).sqrt()
    return torch.atan2(sine, c), sine


def acute_angle(double: bool) -> tuple[str, ...]:
    """Return statements for the angle `acute` in [0, π/2] with cosine `x`, and for its `sine`.

    They also read `e` = 1 - x, which the caller has to compute with small relative error; then both
    results have small relative errors for small angles, too:

        sine = √(e (2 - e)),
        acute = arcsin(sine) = 2 arcsin √(e/2) = sine · R(e/2)     for x > 1/2,
        acute = π/2 - arcsin x = π/2 - x · sine · R(x²)            otherwise,

    with R(z) = arcsin(√z) / √(z (1 - z)). In both cases z is the smaller one of e/2 and x², so
    one polynomial serves both, and the only operation besides sums and products is a square root.
    """
    return (
        "sine = sqrt(e * (2.0 - e))",
        "z = min(0.5 * e, x * x)",
        *polynomial("ratio", _ARCSINE[double], "z"),
        "arc = sine * ratio",
        "acute = arc if e < 0.5 else 1.5707963267948966 - x * arc",
    )
