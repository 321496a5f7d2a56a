"""Pieces of networks that the tests of infinite width put together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_ntk import NTKConv1d, NTKConv2d, NTKLinear

ROOT2 = 2**0.5


class Plus(nn.Module):
    """A sum of branches; by default the second one is the identity."""

    def __init__(self, first: nn.Module, second: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first
        self.second = nn.Identity() if second is None else second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Beside(nn.Module):
    """Channels of branches side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Times(nn.Module):
    """A constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Function(nn.Module):
    """A forward given as a function."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def dense(n_in: int, n_out: int, sigma_w: float = ROOT2, sigma_b: float = 0.1) -> NTKLinear:
    """A dense layer in float64; no bias if sigma_b is 0."""
    return NTKLinear(
        n_in, n_out, bias=sigma_b > 0, sigma_w=sigma_w, sigma_b=sigma_b, dtype=torch.float64
    )


def conv(
    n_in: int,
    n_out: int,
    kernel: int | tuple[int, int] = 3,
    *,
    sigma_w: float = ROOT2,
    sigma_b: float = 0.1,
    **options,  # type: ignore[no-untyped-def]
) -> NTKConv2d:
    """A convolution in float64; no bias if sigma_b is 0."""
    return NTKConv2d(
        n_in,
        n_out,
        kernel,
        bias=sigma_b > 0,
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        dtype=torch.float64,
        **options,
    )


def conv1d(n_in: int, n_out: int, kernel: int = 3, **options) -> NTKConv1d:  # type: ignore[no-untyped-def]
    """The same along one axis."""
    return NTKConv1d(n_in, n_out, kernel, sigma_w=1.3, sigma_b=0.2, dtype=torch.float64, **options)


def frozen(module: nn.Module, *names: str) -> nn.Module:
    """`module` with its parameters, or those named, not trained."""
    for name, parameter in module.named_parameters():
        if not names or name in names:
            parameter.requires_grad_(False)
    return module
