"""Elementwise activations that the field uses and `torch.nn` has no module for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Erf(nn.Module):
    """The error function, `erf(x) = 2/√π ∫₀ˣ exp(-t²) dt`, entry by entry.

    Its infinite-width kernels have a closed form (Williams 1996, "Computing with Infinite
    Networks").

    Example:
        >>> Erf()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """`erf` of every entry; the shape stays."""
        return torch.erf(input)


class Sin(nn.Module):
    """The sine, entry by entry (in radians).

    Example:
        >>> Sin()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """`sin` of every entry; the shape stays."""
        return torch.sin(input)


class Cos(nn.Module):
    """The cosine, entry by entry (in radians).

    Example:
        >>> Cos()(torch.zeros(2))
        tensor([1., 1.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """`cos` of every entry; the shape stays."""
        return torch.cos(input)


class Abs(nn.Module):
    """The absolute value, entry by entry; its derivative at 0 is 0.

    Example:
        >>> Abs()(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """`|x|` of every entry; the shape stays."""
        return torch.abs(input)
