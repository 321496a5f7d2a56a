"""Exponentials and Gaussian bumps as activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_finite_number


class _ScaleAndRate(nn.Module):
    """An activation with the parameters `scale` and `rate`."""

    def __init__(self, scale: float = 1.0, rate: float = 1.0) -> None:
        super().__init__()
        self.scale = check_finite_number("scale", scale)
        self.rate = check_finite_number("rate", rate)

    def extra_repr(self) -> str:
        """The arguments of the constructor, for `repr`."""
        return f"scale={self.scale:g}, rate={self.rate:g}"


class Exp(_ScaleAndRate):
    """`scale · exp(rate · x)`, entry by entry.

    Its infinite-width kernels have a closed form, and grow fast with the variance of its inputs.

    Args:
        scale: The factor in front.
        rate: The factor in the exponent.

    Raises:
        TypeError, ValueError: An argument is not a finite number.

    Example:
        >>> Exp(2.0)(torch.zeros(2))
        tensor([2., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return self.scale * torch.exp(self.rate * input)


class Gaussian(_ScaleAndRate):
    """`scale · exp(rate · x²)`, entry by entry.

    Its infinite-width kernels have a closed form; for a positive rate only where the variance of
    its inputs is below 1/(4 rate).

    Args:
        scale: The factor in front.
        rate: The factor in the exponent.

    Raises:
        TypeError, ValueError: An argument is not a finite number.

    Example:
        >>> Gaussian(2.0)(torch.zeros(2))
        tensor([2., 2.])
    """

    def __init__(self, scale: float = 1.0, rate: float = -1.0) -> None:
        super().__init__(scale, rate)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return self.scale * torch.exp(self.rate * input.square())
