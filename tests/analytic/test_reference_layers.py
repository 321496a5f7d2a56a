"""Values of neural-tangents for layers beyond the dense and two-dimensional ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_nets import conv, dense
from test_lift_reference import SPECS, agrees
from torch import Tensor, nn

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


class OnImages(nn.Module):
    """Attention between all positions of an image `[N, C, P, Q]`, to `[N, C, P·Q]`."""

    def __init__(self, channels: int, zeta: Any, sigma_qk: float, sigma_v: float, out: float):
        super().__init__()
        sigmas = {"sigma_query": sigma_qk, "sigma_key": sigma_qk, "sigma_value": sigma_v}
        self.attention = ntk.NTKSelfAttention(
            channels, WIDTH, attention=zeta, sigma_out=out, **sigmas, dtype=torch.float64
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2)


def _module(kind: str, options: list[Any], shape: tuple[int, ...]) -> nn.Module:
    if kind in SIMPLE:
        return SIMPLE[kind](*options)
    if kind == "gap":
        pools = {2: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool2d, 4: nn.AdaptiveAvgPool3d}
        return nn.Sequential(pools[len(shape)](1), nn.Flatten())
    if kind == "linear":
        return dense(shape[0], WIDTH, *options)
    if kind == "attention":
        return OnImages(shape[0], *options)
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


@pytest.mark.parametrize(
    "name",
    [
        *("conv1d_gap", "conv3d_gap", "conv_local", "conv_transpose"),
        *("attention_softmax", "attention_identity"),
    ],
)
def test_both_kernels(name: str) -> None:
    agrees(name, build(name))
