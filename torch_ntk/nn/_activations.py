"""Elementwise activations for which `torch.nn` has no module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_finite_number


class Erf(nn.Module):
    """The error function, `erf(x) = 2/√π ∫₀ˣ exp(-t²) dt`, entry by entry.

    Its infinite-width kernels have a closed form (Williams 1996, "Computing with Infinite
    Networks").

    Example:
        >>> Erf()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply `erf` to every entry."""
        return torch.erf(input)


class Sin(nn.Module):
    """The sine, entry by entry (in radians).

    Example:
        >>> Sin()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply `sin` to every entry."""
        return torch.sin(input)


class Cos(nn.Module):
    """The cosine, entry by entry (in radians).

    Example:
        >>> Cos()(torch.zeros(2))
        tensor([1., 1.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply `cos` to every entry."""
        return torch.cos(input)


class Abs(nn.Module):
    """The absolute value, entry by entry; its derivative at 0 is 0.

    Example:
        >>> Abs()(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply `|x|` to every entry."""
        return torch.abs(input)


class ABReLU(nn.Module):
    """`negative · min(x, 0) + positive · max(x, 0)`, entry by entry.

    Args:
        negative: The slope below 0.
        positive: The slope above 0.

    Raises:
        TypeError, ValueError: An argument is not a finite number.

    Example:
        >>> ABReLU(-0.5, 2.0)(torch.tensor([-2.0, 3.0]))
        tensor([1., 6.])
    """

    def __init__(self, negative: float, positive: float) -> None:
        super().__init__()
        self.negative = check_finite_number("negative", negative)
        self.positive = check_finite_number("positive", positive)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return self.negative * input.clamp(max=0) + self.positive * input.clamp(min=0)

    def extra_repr(self) -> str:
        """The arguments of the constructor, for `repr`."""
        return f"negative={self.negative:g}, positive={self.positive:g}"
