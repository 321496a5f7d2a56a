"""Values of neural-tangents for layers beyond the dense and two-dimensional ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_nets import conv, dense
from test_lift_reference import SPECS, agrees
from torch import nn

from torch_ntk import Erf
from torch_ntk import nn as ntk

WIDTH = 3
SIMPLE = {"relu": nn.ReLU, "erf": Erf, "flatten": nn.Flatten}


def build(name: str) -> nn.Module:
    """The network of an entry of `cases.json`."""
    modules: list[nn.Module] = []
    shape = tuple(SPECS[name]["input_shape"])
    for kind, *options in SPECS[name]["spec"]:
        modules.append(_module(kind, options, shape))
        shape = tuple(modules[-1](torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    return nn.Sequential(*modules)


def _module(kind: str, options: list[Any], shape: tuple[int, ...]) -> nn.Module:
    if kind in SIMPLE:
        return SIMPLE[kind](*options)
    if kind == "gap":
        pools = {2: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool2d, 4: nn.AdaptiveAvgPool3d}
        return nn.Sequential(pools[len(shape)](1), nn.Flatten())
    if kind == "linear":
        return dense(shape[0], WIDTH, *options)
    *sizes, sigma_w, sigma_b = options
    scales: dict[str, Any] = {"sigma_w": sigma_w, "sigma_b": sigma_b, "dtype": torch.float64}
    if kind == "convtranspose":
        return ntk.NTKConvTranspose2d(shape[0], WIDTH, *sizes, **scales)
    kernel, stride, padding = sizes
    # With an even kernel the odd position is added behind, in jax as in torch.
    scales["padding"] = "same" if padding == "same" and stride == 1 else 0
    assert padding != "same" or stride == 1
    if kind == "convlocal":
        assert padding == "valid"
        return ntk.NTKConvLocal2d(
            shape[0], WIDTH, kernel, input_size=shape[1:], stride=stride, **scales
        )
    if kind == "conv":
        del scales["dtype"]
        return conv(shape[0], WIDTH, kernel, stride=stride, **scales)
    kinds = {"conv1d": ntk.NTKConv1d, "conv3d": ntk.NTKConv3d}
    return kinds[kind](shape[0], WIDTH, kernel, stride, **scales)


@pytest.mark.parametrize("name", ["conv1d_gap", "conv3d_gap", "conv_local", "conv_transpose"])
def test_both_kernels(name: str) -> None:
    agrees(name, build(name))
