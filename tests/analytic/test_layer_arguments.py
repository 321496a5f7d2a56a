"""Arguments of layers that are easily misread: biases that are not there, uneven padding."""

from __future__ import annotations

import pytest
import torch
from covariance_oracle import kernels
from small_nets import conv, dense
from torch import nn

from torch_ntk import NTKConv2d, NTKLinear, analytic_kernels


def agree(net: nn.Module, *shape: int) -> None:
    """Both kernels are those of the recursion over pairs of positions."""
    x1, x2 = (torch.randn(n, *shape, dtype=torch.float64) for n in (3, 2))
    got = analytic_kernels(net, x1, x2)
    for mine, wanted in zip(got, kernels(net, x1, x2), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sigma_b", [None, 0.7])
def test_sigma_b_counts_only_with_a_bias(sigma_b: float | None) -> None:
    """A layer without a bias has a sigma_b all the same: 0.1 if nothing else is said."""
    given = {} if sigma_b is None else {"sigma_b": sigma_b}
    options = {"bias": False, "dtype": torch.float64, **given}
    agree(nn.Sequential(NTKLinear(5, 4, **options), nn.ReLU(), NTKLinear(4, 2, **options)), 5)
    body = [NTKConv2d(3, 4, 3, **options), nn.ReLU(), NTKConv2d(4, 4, 2, padding=1, **options)]
    agree(nn.Sequential(*body, nn.Flatten(), NTKLinear(48, 2, **options)), 3, 4, 5)
    x = torch.randn(3, 5, dtype=torch.float64)
    got = analytic_kernels(NTKLinear(5, 2, **options), x)
    torch.testing.assert_close(got.ntk, x @ x.T / 5)


@pytest.mark.parametrize("kernel", [2, 4, (2, 3), (1, 4)])
@pytest.mark.parametrize("end", ["flatten", "gap"])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_same_padding_of_an_even_kernel(kernel: int | tuple[int, int], end: str, mode: str) -> None:
    """The odd position is added behind, as `torch` does, and not in front."""
    body = [conv(3, 4, kernel, padding="same", padding_mode=mode), nn.ReLU(), conv(4, 4, (2, 1))]
    pool, size = ([nn.AdaptiveAvgPool2d(1)], 4) if end == "gap" else ([], 4 * 3 * 5)
    agree(nn.Sequential(*body, nn.ReLU(), *pool, nn.Flatten(), dense(size, 2)), 3, 4, 5)
