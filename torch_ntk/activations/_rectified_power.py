"""The dual functions of powers of the positive part, max(x, 0)ⁿ."""

from __future__ import annotations

import math
from functools import cache

from torch import Tensor

from ._angle import acute_angle, angle_and_sine
from ._dual import DualActivation
from ._formula import Form, Formula, by_covariance
from ._polynomial import polynomial_at
from ._rectifier import positive_and_root, roots


class DualRectifiedPower(DualActivation):
    """φ(x) = max(x, 0)ⁿ for n ≥ 2.

    With r = √(q1 q2), cos θ = k / r and the angular functions J_n of the arc-cosine kernels,

        κ = rⁿ J_n(θ) / (2π),    κ̇ = n² rⁿ⁻¹ J_{n-1}(θ) / (2π)

    (Cho and Saul 2009, "Kernel Methods for Deep Learning"). In c = cos θ,
    J_n = A_n(c) sin θ + B_n(c) (π - θ) with polynomials that follow from J_0 = π - θ and
    ∂J_n/∂c = n² J_{n-1}, which is Price's theorem; see `_angular_coefficients`.

    Args:
        power: n.
    """

    def __init__(self, power: int) -> None:
        self.name = f"rectified power {power}"
        self.power = power

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = (2n-1)!! qⁿ/2 and E[φ'(u)²] = n² (2n-3)!! qⁿ⁻¹/2."""
        n = self.power
        below = math.prod(range(1, 2 * n - 2, 2)) / 2
        return (2 * n - 1) * below * q**n, n**2 * below * q ** (n - 1)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        n = self.power
        safe1, root1 = positive_and_root(q1)
        safe2, root2 = positive_and_root(q2)
        c = (k / (safe1.sqrt() * safe2.sqrt())).clamp(-1.0, 1.0)
        theta, sine = angle_and_sine(c)
        r = root1 * root2
        value = r**n * _angular_function(n, c, sine, math.pi - theta)
        slope = r ** (n - 1) * _angular_function(n - 1, c, sine, math.pi - theta)
        return value / (2 * math.pi), slope * (n**2 / (2 * math.pi))

    def fused(self, form: Form) -> Formula:
        """Return statements for the same formulas; the terms of an image are √q and 1/√q."""
        n = self.power
        lines = (
            "r = a0 * b0",
            "c = min(max(k0 * (a1 * b1), -1.0), 1.0)",
            "x = abs(c)",
            "e = 1.0 - x",
            *acute_angle(form.double),
            "rest = acute if c < 0.0 else 3.141592653589793 - acute",
            *_angular_statements("value", n),
            *_angular_statements("slope", n - 1),
            f"k = p0 * value * {' * '.join(['r'] * n)}",
            f"t = t0 * (p1 * slope * {' * '.join(['r'] * (n - 1))})",
        )
        numbers = 1 / (2 * math.pi), n**2 / (2 * math.pi)
        formula = Formula(lines, numbers, roots)
        return by_covariance(formula, self.diagonal) if form.distance else formula


def _angular_statements(target: str, n: int) -> list[str]:
    """Return statements that assign J_n(θ) to `target`."""
    parts = []
    for name, coefficients in zip(("of_sine", "of_angle"), _angular_coefficients(n), strict=True):
        parts.append(f"{name} = {coefficients[-1]!r} + 0.0 * c")
        parts += [f"{name} = {name} * c + {x!r}" for x in reversed(coefficients[:-1])]
    return [*parts, f"{target} = of_sine * sine + of_angle * rest"]


def _angular_function(n: int, c: Tensor, sine: Tensor, rest: Tensor) -> Tensor:
    """Return J_n(θ) from cos θ, sin θ and π - θ."""
    with_sine, with_angle = _angular_coefficients(n)
    return polynomial_at(with_sine, c) * sine + polynomial_at(with_angle, c) * rest


@cache
def _angular_coefficients(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the coefficients of the polynomials A_n and B_n.

    With s = sin θ, ∂s/∂c = -c/s and ∂(π - θ)/∂c = 1/s, so ∂J_n/∂c = n² J_{n-1} requires

        B_n' = n² B_{n-1},    (1 - c²) A_n' - c A_n = n² (1 - c²) A_{n-1} - B_n.

    J_n(π/2) = 2π (E max(u, 0)ⁿ)² = (n-1)!!² times π/2 for even n and 1 for odd n.
    """
    if n == 0:
        return (0.0,), (1.0,)
    a, b = _angular_coefficients(n - 1)
    start = float(math.prod(range(n - 1, 0, -2))) ** 2
    now = [0.0 if n % 2 else start, *(n**2 * x / (i + 1) for i, x in enumerate(b))]
    # The coefficients of the right side; those of the left side are (i+1) A_{i+1} - i A_{i-1}.
    right = [0.0] * (len(now) + 2)
    for i, x in enumerate(a):
        right[i] += n**2 * x
        right[i + 2] -= n**2 * x
    for i, x in enumerate(now):
        right[i] -= x
    found = [start if n % 2 else 0.0]
    for i in range(n - 1):
        found.append((right[i] + (i * found[i - 1] if i else 0.0)) / (i + 1))
    return tuple(found), tuple(now)
