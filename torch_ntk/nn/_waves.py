"""Sinusoids and Gabor functions as activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._checks import check_finite_number, value_error


class Sinusoid(nn.Module):
    """`amplitude · sin(frequency · x + phase)`, entry by entry (in radians).

    Args:
        amplitude: The factor in front.
        frequency: The factor of x.
        phase: The phase at x = 0, in radians.

    Raises:
        TypeError, ValueError: An argument is not a finite number.

    Example:
        >>> Sinusoid(2.0, 1.0, math.pi / 2)(torch.zeros(1))
        tensor([2.])
    """

    def __init__(self, amplitude: float = 1.0, frequency: float = 1.0, phase: float = 0.0) -> None:
        super().__init__()
        self.amplitude = check_finite_number("amplitude", amplitude)
        self.frequency = check_finite_number("frequency", frequency)
        self.phase = check_finite_number("phase", phase)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return self.amplitude * torch.sin(self.frequency * input + self.phase)

    def extra_repr(self) -> str:
        """The arguments of the constructor, for `repr`."""
        return f"amplitude={self.amplitude:g}, frequency={self.frequency:g}, phase={self.phase:g}"


class RBF(Sinusoid):
    """Random features of the Gaussian kernel: `√2 sin(√(2 gamma) x + π/4)`, entry by entry.

    After a layer whose outputs have distances d = E(u - v)², the covariance is exp(-gamma · d).

    Source: Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines".

    Args:
        gamma: The rate; above 0.

    Raises:
        TypeError, ValueError: `gamma` is not a finite number above 0.

    Example:
        >>> RBF(0.5)(torch.zeros(1)).round(decimals=4)
        tensor([1.])
    """

    def __init__(self, gamma: float = 1.0) -> None:
        if check_finite_number("gamma", gamma, minimum=0.0) == 0:
            raise value_error("gamma", "greater than 0", gamma)
        super().__init__(math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4)
        self.gamma = float(gamma)

    def extra_repr(self) -> str:
        """The argument of the constructor, for `repr`."""
        return f"gamma={self.gamma:g}"


class Gabor(nn.Module):
    """`exp(-x²) · sin(x)`, entry by entry: a wave in a Gaussian window.

    Example:
        >>> Gabor()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return torch.exp(-input.square()) * torch.sin(input)
