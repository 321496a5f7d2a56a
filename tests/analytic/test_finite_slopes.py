"""Kernels of finite networks come to the lifted ones with the root of the width."""

from __future__ import annotations

import math

import pytest
import torch
from analytic_cases import mlp
from small_nets import conv, dense
from torch import Tensor, nn

from torch_ntk import analytic_ntk, empirical_ntk


def errors_by_width(build, x: Tensor, widths: tuple[int, ...], draws: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Per width the root mean square over draws of the relative distance to the limit."""
    limit = analytic_ntk(build(4), x)
    found = []
    for width in widths:
        squares = [
            float((empirical_ntk(build(width), x, output="mean") - limit).square().sum())
            for _ in range(draws)
        ]
        found.append(math.sqrt(sum(squares) / draws / float(limit.square().sum())))
    return found


def slope(widths: tuple[int, ...], errors: list[float]) -> float:
    x = torch.tensor(widths, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


@pytest.mark.slow
def test_dense_networks_converge_with_the_root_of_the_width() -> None:
    widths = (64, 256, 1024, 4096)
    x = torch.randn(3, 5, dtype=torch.float64)

    def build(n: int) -> nn.Module:
        net = mlp(nn.ReLU)(n)
        return nn.Sequential(*list(net)[:-1], dense(n, 4))

    errors = errors_by_width(build, x, widths, 10)
    assert abs(slope(widths, errors) + 0.5) < 0.1, errors


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["flatten", "gap"])
def test_convolutional_networks_converge_with_the_root_of_the_width(pooling: str) -> None:
    widths = (64, 128, 256, 512)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)

    def build(n: int) -> nn.Module:
        end = [nn.AdaptiveAvgPool2d(1)] if pooling == "gap" else []
        net = nn.Sequential(
            conv(2, n, padding=1), nn.ReLU(), conv(n, n, padding=1), nn.ReLU(), *end
        )
        return nn.Sequential(*net, nn.Flatten(), dense(n if end else 16 * n, 4))

    errors = errors_by_width(build, x, widths, 16)
    assert abs(slope(widths, errors) + 0.5) < 0.1, errors
