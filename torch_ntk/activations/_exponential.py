"""The exponential function as statements for fused loops."""

from __future__ import annotations

from ._formula import polynomial

# Coefficients of powers of r for (eʳ - 1) / r on |r| ≤ log(2)/2, with errors of 2e-8 (float32) and
# 2e-16 (float64, `True`).
_EXPM1_RATIO = {
    False: (
        1.00000001077157, 0.5000000013457727, 0.16666505260408124, 0.04166646500604005,
        0.008369148490856347, 0.0013933641031986701,
    ),
    True: (
        1.0, 0.5, 0.1666666666666668, 0.04166666666666668, 0.008333333333319601,
        0.0013888888888879082, 0.00019841269890047113, 2.480158733642132e-05, 2.755724091857897e-06,
        2.755726330147475e-07, 2.5110037605963777e-08, 2.0918129454967065e-09,
    ),
}  # fmt: skip

# log 2 as a sum of two numbers, the first of which has so few digits that its small multiples are
# exact; and the arguments beyond which 2ⁿ leaves the range of the type.
_LOG2 = {
    False: (0.693359375, -0.00021219444005469057),
    True: (0.6931471803691238, 1.9082149292705877e-10),
}
_RANGE = {False: (-87.0, 88.0), True: (-708.0, 709.0)}


def exponential(target: str, double: bool) -> tuple[str, ...]:
    """Return statements that assign eˣ - 1 to `target`, with small relative error for small x, too.

    With n the nearest integer to x / log 2 and r = x - n log 2, eˣ - 1 = 2ⁿ (eʳ - 1) + (2ⁿ - 1).
    An x whose exponential is out of the range of the type is replaced by the nearest other one.
    """
    high, low = _LOG2[double]
    least, most = _RANGE[double]
    n, r, two = (f"{target}_{part}" for part in ("whole", "rest", "power"))
    return (
        f"{r} = min(max(x, {least!r}), {most!r})",
        f"{n} = floor({r} * 1.4426950408889634 + 0.5)",
        f"{r} = ({r} - {n} * {high!r}) - {n} * {low!r}",
        *polynomial(f"{target}_rise", _EXPM1_RATIO[double], r),
        f"{two} = power_of_two({n})",
        f"{target} = {two} * ({r} * {target}_rise) + ({two} - 1.0)",
    )
