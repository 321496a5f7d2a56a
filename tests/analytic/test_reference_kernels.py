"""Fixed values computed elsewhere: 18 architectures, and the formula of Arora et al. 2019."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from small_nets import Plus, conv, dense
from torch import Tensor, nn

from torch_ntk import (
    CNTK,
    Abs,
    Erf,
    Sin,
    analytic_kernels,
    analytic_nngp,
    analytic_ntk,
    mlp_kernels,
)

FOLDER = Path(__file__).resolve().parents[1] / "reference"
SPECS: dict[str, Any] = {
    name: entry
    for name, entry in json.loads((FOLDER / "cases.json").read_text()).items()
    if name != "dynamics"
}
SIMPLE = {
    "relu": nn.ReLU,
    "abs": Abs,
    "erf": Erf,
    "gelu": nn.GELU,
    "sin": Sin,
    "leaky_relu": nn.LeakyReLU,
    "flatten": nn.Flatten,
}
WIDTH = 3


def build(spec: list[Any], shape: tuple[int, ...]) -> nn.Module:
    """The network of an entry of `cases.json`."""
    return _build(spec, shape)[0]


def _build(spec: list[Any], shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    modules: list[nn.Module] = []
    for name, *options in spec:
        module = _module(name, options, shape)
        modules.append(module)
        shape = tuple(module(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    return nn.Sequential(*modules), shape


def _module(name: str, options: list[Any], shape: tuple[int, ...]) -> nn.Module:
    if name == "linear":
        return dense(shape[0], WIDTH, *options)
    if name == "conv":
        kernel, stride, padding, sigma_w, sigma_b = options
        extra: dict[str, Any] = {"padding": 0 if padding == "valid" else kernel // 2}
        if padding == "circular":
            extra["padding_mode"] = "circular"
        return conv(
            shape[0], WIDTH, kernel, stride=stride, sigma_w=sigma_w, sigma_b=sigma_b, **extra
        )
    if name == "avgpool":
        return nn.AvgPool2d(*options)
    if name == "gap":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if name == "layernorm":
        return nn.LayerNorm(shape, 1e-12, elementwise_affine=False)
    if name == "residual":
        return Plus(_build(options[0], shape)[0])
    return SIMPLE[name](*options)


def load(name: str) -> dict[str, Tensor]:
    """The arrays of a file as tensors."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("name", SPECS)
def test_both_kernels_of_every_case(name: str) -> None:
    entry, wanted = SPECS[name], load(name)
    net = build(entry["spec"], tuple(entry["input_shape"]))
    one = analytic_kernels(net, wanted["x1"])
    two = analytic_kernels(net, wanted["x1"], wanted["x2"])
    off = ~torch.eye(5, dtype=torch.bool)
    for kernel in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(two, kernel), wanted[f"{kernel}12"], rtol=1e-10, atol=0)
        mine = getattr(one, kernel)
        torch.testing.assert_close(mine[off], wanted[f"{kernel}11"][off], rtol=1e-10, atol=0)
        # There the reference takes the arccosine of a rounded 1, which is good to 1e-8.
        torch.testing.assert_close(
            mine.diagonal(), wanted[f"{kernel}11"].diagonal(), rtol=5e-8, atol=0
        )
    assert torch.equal(analytic_nngp(net, wanted["x1"]), one.nngp)
    assert torch.equal(analytic_ntk(net, wanted["x1"]), one.ntk)


@pytest.mark.parametrize("name", ["mlp_relu_3", "mlp_relu_12", "mlp_erf_4", "mlp_sin_3"])
def test_the_diagonal_exactly(name: str) -> None:
    """On the diagonal one-dimensional formulas hold, here in 30 digits."""
    spec, x = SPECS[name]["spec"], load(name)["x1"]
    got = analytic_kernels(build(spec, (20,)), x)
    for n, row in enumerate(x):
        nngp, ntk = _diagonal(spec, row)
        assert abs(float(got.nngp[n, n] / nngp) - 1) < 1e-12
        assert abs(float(got.ntk[n, n] / ntk) - 1) < 1e-12


def _diagonal(spec: list[Any], x: Tensor) -> tuple[float, float]:
    with mpmath.workdps(30):
        q = sum(mpmath.mpf(v) ** 2 for v in x.tolist()) / len(x)
        t = mpmath.mpf(0)
        for name, *options in spec:
            if name == "linear":
                w, b = (mpmath.mpf(o) ** 2 for o in options)
                q, t = w * q + b, w * (t + q) + b
            elif name == "relu":
                q, t = q / 2, t / 2
            elif name == "erf":
                slope = 4 / mpmath.pi / mpmath.sqrt((1 + 2 * q) ** 2 - (2 * q) ** 2)
                q, t = 2 / mpmath.pi * mpmath.asin(2 * q / (1 + 2 * q)), t * slope
            else:
                assert name == "sin"
                q, t = (1 - mpmath.exp(-2 * q)) / 2, t * (1 + mpmath.exp(-2 * q)) / 2
        return float(q), float(t)


@pytest.mark.parametrize("ends", ["trained_ends", "fixed_ends"])
@pytest.mark.parametrize("pooling", ["v", "gap"])
@pytest.mark.parametrize("depth", [3, 4, 11])
def test_the_formula_of_arora(depth: int, pooling: str, ends: str) -> None:
    values = load("arora_cntk")
    kernel = CNTK(
        depth,
        pooling="gap" if pooling == "gap" else "flatten",
        trained_ends=ends == "trained_ends",
        scaling="arora",
    )
    wanted = values[f"depth{depth}_{pooling}_{ends}"]
    torch.testing.assert_close(kernel(values["x1"], values["x2"]), wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("pooling", ["flatten", "gap"])
@pytest.mark.parametrize("padding", ["zeros", "circular", "valid"])
def test_cntk_is_the_kernel_of_its_network(padding: str, pooling: str) -> None:
    # A circle with the activation whose code other tests compile as well.
    activation, kind = ("relu", nn.ReLU) if padding == "circular" else ("erf", Erf)
    convs = []
    for n_in in (3, WIDTH):
        options = {"padding": 0 if padding == "valid" else 1}
        mode = "circular" if padding == "circular" else "zeros"
        convs += [conv(n_in, WIDTH, sigma_w=1.3, sigma_b=0.2, padding_mode=mode, **options)]
        convs += [kind()]
    body = nn.Sequential(*convs)
    if pooling == "gap":
        body.append(nn.AdaptiveAvgPool2d(1))
    body.append(nn.Flatten())
    x1, x2 = (torch.randn(n, 3, 5, 6, dtype=torch.float64) for n in (3, 2))
    net = nn.Sequential(body, dense(body(x1).shape[1], 1, 1.0, 0.2))
    scales = {"sigma_w": 1.3, "sigma_b": 0.2}
    kernel = CNTK(3, pooling=pooling, padding=padding, activation=activation, **scales)
    for other in (None, x2):
        wanted = analytic_ntk(net, x1, other)
        torch.testing.assert_close(kernel(x1, other), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("pooling", ["flatten", "gap"])
def test_cntk_with_fixed_ends_and_another_kernel_size(pooling: str) -> None:
    options = {"padding": "same", "sigma_b": 0}
    body = [conv(2, 4, 2, **options), nn.ReLU(), conv(4, 4, 2, **options)]
    body[0].requires_grad_(False)
    end = [nn.AdaptiveAvgPool2d(1)] if pooling == "gap" else []
    x = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    net = nn.Sequential(*body, nn.ReLU(), *end, nn.Flatten())
    net.append(dense(net(x).shape[1], 1, 1.0, 0.0).requires_grad_(False))
    kernel = CNTK(3, pooling=pooling, kernel_size=2, trained_ends=False)
    torch.testing.assert_close(kernel(x), analytic_ntk(net, x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", ["relu", "erf", nn.Tanh(), torch.sin, nn.LeakyReLU(0.3)])
def test_mlp_kernels_are_those_of_its_network(activation: Any) -> None:
    x1, x2 = (torch.randn(n, 2, 3, dtype=torch.float64) for n in (4, 3))
    named = SIMPLE[activation]() if isinstance(activation, str) else activation
    if activation is torch.sin:
        named = Sin()
    layers: list[nn.Module] = [nn.Flatten(), dense(6, 4, 1.2, 0.3)]
    for _ in range(3):
        layers += [named, dense(4, 4, 1.2, 0.3)]
    for other in (None, x2):
        got = mlp_kernels(x1, other, 4, activation, 1.2, 0.3)
        wanted = analytic_kernels(nn.Sequential(*layers), x1, other)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_scaling_of_arora_counts_channels_and_positions() -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    for pooling, padding, factor in (
        ("flatten", "zeros", 90),
        ("gap", "zeros", 3),
        ("flatten", "valid", 3 * 1 * 2),
    ):
        mean, arora = (
            CNTK(3, pooling=pooling, padding=padding, scaling=scaling)(x)
            for scaling in ("mean", "arora")
        )
        torch.testing.assert_close(arora, mean * factor, rtol=1e-14, atol=0)
