"""Polynomials and rectified powers as activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._checks import check_finite_number, check_positive_int, describe, type_error, value_error


class Polynomial(nn.Module):
    """`Σ_i coefficients[i] xⁱ`, entry by entry.

    Its infinite-width kernels have a closed form.

    Args:
        coefficients: The coefficients of 1, x, x², …; at least one after the first is not 0.

    Raises:
        TypeError: `coefficients` is not a list or tuple of numbers.
        ValueError: A coefficient is not finite, or the polynomial is constant.

    Example:
        >>> Polynomial([1.0, 0.0, 2.0])(torch.tensor([0.0, 3.0]))
        tensor([ 1., 19.])
    """

    def __init__(self, coefficients: Sequence[float]) -> None:
        super().__init__()
        if not isinstance(coefficients, (list, tuple)):
            what = describe(coefficients)
            raise type_error("coefficients", "a list of numbers", what, "As in [0.0, 1.0].")
        self.coefficients = [
            check_finite_number(f"coefficients[{i}]", c) for i, c in enumerate(coefficients)
        ]
        if not any(self.coefficients[1:]):
            remedy = "A constant has derivative 0: give a coefficient of x or of a higher power."
            raise value_error("coefficients", "of a polynomial", coefficients, remedy)

    def forward(self, input: Tensor) -> Tensor:
        """Evaluate the polynomial for every entry by Horner's rule."""
        value = torch.full_like(input, self.coefficients[-1])
        for c in self.coefficients[-2::-1]:
            value = value * input + c
        return value

    def extra_repr(self) -> str:
        """The arguments of the constructor, for `repr`."""
        return str(self.coefficients)


class _OfDegree(nn.Module):
    """An activation with the one parameter `degree`, at least 1."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = check_positive_int("degree", degree)

    def extra_repr(self) -> str:
        """The degree, for `repr`."""
        return str(self.degree)


class Monomial(_OfDegree):
    """`x ** degree`, entry by entry.

    Args:
        degree: The exponent, at least 1.

    Raises:
        TypeError, ValueError: `degree` is not a positive integer.

    Example:
        >>> Monomial(3)(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  8.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return input**self.degree


class RectifiedMonomial(_OfDegree):
    """`max(x, 0) ** degree`, entry by entry: the activation of the arc-cosine kernels.

    Source: Cho and Saul 2009, "Kernel Methods for Deep Learning".

    Args:
        degree: The exponent, at least 1; 1 is ReLU.

    Raises:
        TypeError, ValueError: `degree` is not a positive integer.

    Example:
        >>> RectifiedMonomial(2)(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return torch.relu(input) ** self.degree


class Hermite(_OfDegree):
    """The Hermite polynomial of degree n, orthonormal for a standard Gaussian, entry by entry.

    `h_n = He_n / √(n!)` with `He_{n+1}(x) = x He_n(x) - n He_{n-1}(x)`, so that
    `E h_m(z) h_n(z)` is 1 for m = n and 0 otherwise. For inputs of variance 1 its kernel is the
    n-th power of their correlation.

    Args:
        degree: The degree n, at least 1.

    Raises:
        TypeError, ValueError: `degree` is not a positive integer.

    Example:
        >>> Hermite(2)(torch.tensor([1.0]))  # (x² - 1)/√2
        tensor([0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        last, now = torch.zeros_like(input), torch.ones_like(input)
        for n in range(self.degree):
            last, now = now, input * now - n * last
        return now / math.sqrt(math.factorial(self.degree))
