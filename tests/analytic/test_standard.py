"""Kernels of ordinary layers at the widths that they have: `standard=`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_nets import Plus, conv, dense
from test_finite_networks import deviation
from torch import Tensor, nn

from torch_ntk import (
    analytic_kernels,
    analytic_nngp,
    analytic_ntk,
    empirical_ntk,
    standard_init_,
)
from torch_ntk.sampling import monte_carlo_kernel

VECTORS = torch.randn(3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(3, 12, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mlp(n: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, n), nn.ReLU(), nn.Linear(n, 2 * n), nn.Tanh(), nn.Linear(2 * n, 8)
    ).double()


def cnn(n: int) -> nn.Module:
    """With everything that a convolution has, and its bias."""
    return nn.Sequential(
        nn.Conv2d(12, n, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(n, n, 3, stride=2, padding=1, groups=2, bias=False),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(n, 8),
    ).double()


def flat(n: int) -> nn.Module:
    """With layers of another fan-in, in NTK parameterization too, and a branch beside them."""
    body = nn.Sequential(nn.ReLU(), nn.Conv2d(n, n, 1).double())
    return nn.Sequential(
        conv(12, n, padding=1), Plus(body), nn.ReLU(), nn.Flatten(), nn.Linear(16 * n, 8).double()
    )


DEFAULT: dict[str, tuple[Any, Tensor]] = {
    "mlp": (mlp, VECTORS), "cnn": (cnn, IMAGES), "mixed": (flat, IMAGES)
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULT)
def test_networks_as_torch_draws_them(name: str) -> None:
    build, x = DEFAULT[name]
    width = 128
    limit = analytic_kernels(build(width), x[:2], x, standard="torch")
    for kind, draws in (("ntk", 30), ("nngp", 100)):
        wanted = getattr(limit, kind)
        sampled = monte_carlo_kernel(lambda: build(width), x[:2], x, n_samples=draws, kind=kind)
        assert deviation(sampled, wanted, width) < 3, kind
        assert deviation(sampled, 1.2 * wanted, width) > 3, kind


SCHEMES: dict[str, tuple[Any, Any]] = {
    "kaiming": ("kaiming", lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "lecun": ("lecun", lambda w: nn.init.normal_(w, std=w[0].numel() ** -0.5)),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_other_schemes(name: str) -> None:
    scheme, draw = SCHEMES[name]

    def build() -> nn.Module:
        net = cnn(128)
        for p in net.parameters():
            draw(p) if p.ndim > 1 else nn.init.zeros_(p)
        return net

    limit = analytic_ntk(cnn(128), IMAGES, standard=scheme)
    sampled = monte_carlo_kernel(build, IMAGES, n_samples=30)
    assert deviation(sampled, limit, 128) < 3
    assert deviation(sampled, 1.2 * limit, 128) > 3


def test_a_pair_of_scales_is_what_standard_init_draws() -> None:
    limit = analytic_ntk(mlp(128), VECTORS, standard=(1.3, 0.4))
    sampled = monte_carlo_kernel(lambda: standard_init_(mlp(128), 1.3, 0.4), VECTORS, n_samples=30)
    assert deviation(sampled, limit, 128) < 3
    assert deviation(sampled, 1.2 * limit, 128) > 3


@pytest.mark.slow
def test_the_relative_error_falls_with_the_root_of_the_width() -> None:
    """Of dense layers; the table of slopes has others, and only that their error falls."""
    widths, errors = (64, 512), []
    for n in widths:
        limit = analytic_ntk(mlp(n), VECTORS, standard="torch")
        squares = [
            (empirical_ntk(mlp(n), VECTORS, output="mean", check=False) - limit).square().sum()
            for _ in range(80)
        ]
        errors.append(float(torch.stack(squares).mean() / limit.square().sum()) ** 0.5)
    slope = math.log(errors[1] / errors[0]) / math.log(widths[1] / widths[0])
    assert abs(slope + 0.5) < 0.1, errors


def test_scales_by_the_names_of_modules() -> None:
    """The longest name that a layer is in counts; NTK layers keep what they say themselves."""
    net = nn.Sequential(
        nn.Sequential(nn.Linear(30, 5), nn.ReLU(), nn.Linear(5, 6)), nn.ReLU(), dense(6, 2)
    )
    twin = nn.Sequential(
        dense(30, 5, 1.5, 0.2), nn.ReLU(), dense(5, 6, 1.1, 0.3), nn.ReLU(), dense(6, 2)
    )
    scales = {"0": (1.5, 0.2), "0.2": (1.1, 0.3)}
    found, wanted = (
        analytic_nngp(m, VECTORS, **o) for m, o in ((net, {"standard": scales}), (twin, {}))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for every in ("torch", {"": "torch"}, {"0.0": "torch", "0.2": "torch"}):
        assert torch.equal(
            analytic_ntk(net, VECTORS, standard=every), analytic_ntk(net, VECTORS, standard="torch")
        )


def test_frozen_layers_have_no_part_in_the_tangent_kernel() -> None:
    """Θ of the last layer alone is its fan-in times the covariance of its inputs, plus 1."""
    net = nn.Sequential(nn.Linear(30, 7), nn.ReLU(), nn.Linear(7, 2))
    net[0].requires_grad_(False)
    k = analytic_kernels(net, VECTORS, standard=(1.2, 0.5))
    torch.testing.assert_close(k.ntk, 7 * (k.nngp - 0.25) / 1.44 + 1, rtol=1e-12, atol=0)


@pytest.mark.parametrize("standard", ["torch", (1.3, 0.4)])
def test_layers_without_a_bias_have_none(standard: Any) -> None:
    x = VECTORS
    k = analytic_kernels(nn.Linear(30, 2, bias=False), x, standard=standard)
    variance = 1 / 3 if standard == "torch" else 1.69  # 30 times that of a weight
    torch.testing.assert_close(k.nngp, variance * x @ x.T / 30, rtol=1e-12, atol=0)
    torch.testing.assert_close(k.ntk, x @ x.T, rtol=1e-12, atol=0)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "scheme": ("he", ValueError, r"`standard` must be one of 'torch', 'kaiming', 'lecun'"),
    "kind": (1.0, TypeError, r"`standard` must be 'torch'.*pair \(sigma_w, sigma_b\)"),
    "pair": ((1.0, 2.0, 3.0), TypeError, "pair"),
    "sigma_w": ((0.0, 0.1), ValueError, r"`standard\[0\]`.*not depend on its input"),
    "sigma_b": ((1.0, -0.1), ValueError, r"`standard\[1\]`.*at least 0"),
    "name": ({"5": "torch"}, ValueError, "the name '5'.*'0', '2', '4'"),
    "not a name": ({5: "torch"}, ValueError, "the name 5"),
    "activation": ({"1": "torch"}, ValueError, "the name '1'"),
    "of one": ({"0": "xavier"}, ValueError, r"`standard\['0'\]` must be one of"),
    "left out": ({"0": "torch", "2": "torch"}, ValueError, "nn.Linear at '4'.*says nothing"),
    "none": (None, ValueError, "nn.Linear at '0'.*ntk_parameterize.*standard='torch'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_standard_must_be(name: str) -> None:
    standard, kind, text = WRONG[name]
    with pytest.raises(kind, match=text):
        analytic_ntk(mlp(4), VECTORS, standard=standard)


def test_batch_normalization_is_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match=r"nn\.BatchNorm1d at '1'.*LayerNorm or GroupNorm"):
        analytic_ntk(net, VECTORS, standard="torch")


def test_ordinary_layers_of_one_weight_are_refused() -> None:
    net = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 30)).double()
    net[2].weight = net[0].weight
    with pytest.raises(ValueError, match="second use of the parameters that '0' uses"):
        analytic_ntk(net, VECTORS, standard="torch")
