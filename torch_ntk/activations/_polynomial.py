"""The dual functions of polynomials, and the coefficients of Hermite polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._dual import DualActivation
from ._formula import Form, Formula, by_covariance

# The largest degree for which fused loops get a statement for each power.
_MOST_WRITTEN_OUT = 12


class DualPolynomial(DualActivation):
    """φ(x) = Σ_i c_i xⁱ.

    With the means m_n(q) = E[φ⁽ⁿ⁾(u)] of the derivatives for u of variance q, polynomials in q,

        κ = Σ_n m_n(q1) m_n(q2) kⁿ / n!,    κ̇ = Σ_{n ≥ 1} m_n(q1) m_n(q2) kⁿ⁻¹ / (n-1)!,

    which is Mehler's formula, here a finite sum. The means follow from E[u^(2j)] = (2j-1)!! qʲ.

    Args:
        coefficients: c_0, c_1, ….
        name: The name in messages.

    Example:
        >>> one = torch.ones(1)
        >>> DualPolynomial([0.0, 0.0, 1.0]).pair(one, one, one)  # φ(x) = x²
        (tensor([3.]), tensor([4.]))
    """

    def __init__(self, coefficients: Sequence[float], name: str = "polynomial") -> None:
        self.name = name
        self.coefficients = tuple(float(c) for c in coefficients)
        self._means = tuple(
            _mean_of_derivative(self.coefficients, n) for n in range(len(self.coefficients))
        )

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] and E[φ'(u)²]: `pair` at k = q1 = q2 = q."""
        return self.pair(q, q, q)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ by Horner's rule in k; see `DualActivation.pair`."""
        products = [polynomial_at(m, q1) * polynomial_at(m, q2) for m in self._means]
        nothing = torch.zeros_like(k * q1 * q2)
        value, slope = nothing, nothing
        for n in reversed(range(len(products))):
            value = value * k + products[n] / math.factorial(n)
            if n:
                slope = slope * k + products[n] / math.factorial(n - 1)
        return value, slope

    def fused(self, form: Form) -> Formula | None:
        """Return statements for Horner's rule in k, or None for large degrees.

        The terms of an image are m_n(q) / √n!.
        """
        last = len(self._means) - 1
        if last > _MOST_WRITTEN_OUT:
            return None
        lines = ["value = 0.0 * k0", "slope = 0.0 * k0"]
        for n in range(last, -1, -1):
            lines.append(f"both = a{n} * b{n}")
            if n:
                lines.append(f"slope = slope * k0 + {float(n)!r} * both")
            lines.append("value = value * k0 + both")

        def terms(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            q = variances[0]
            return tuple(
                polynomial_at(m, q) / math.sqrt(math.factorial(n))
                for n, m in enumerate(self._means)
            )

        formula = Formula((*lines, "k = value", "t = t0 * slope"), terms=terms)
        return by_covariance(formula, self.diagonal) if form.distance else formula


def hermite_coefficients(degree: int) -> tuple[float, ...]:
    """Return the coefficients of 1, x, x², … in the Hermite polynomial h_n = He_n / √n!.

    These polynomials are orthonormal: E[h_m(z) h_n(z)] = δ_mn for a standard Gaussian z.

    Args:
        degree: n.
    """
    last, now = [0.0], [1.0]
    for n in range(degree):
        # He_{n+1} = x He_n - n He_{n-1}
        following = [0.0, *now]
        for i, c in enumerate(last):
            following[i] -= n * c
        last, now = now, following
    return tuple(c / math.sqrt(math.factorial(degree)) for c in now)


def _mean_of_derivative(coefficients: Sequence[float], n: int) -> tuple[float, ...]:
    """Return the coefficients of 1, q, q², … in E[φ⁽ⁿ⁾(u)], from those of φ."""
    found: list[float] = []
    for i, c in enumerate(coefficients):
        if i >= n and (i - n) % 2 == 0:
            found.append(c * math.perm(i, n) * math.prod(range(1, i - n, 2)))
    return tuple(found) or (0.0,)


def polynomial_at(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Return Σ_i coefficients[i] xⁱ by Horner's rule."""
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value
