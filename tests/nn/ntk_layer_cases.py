"""The table of NTK layers that the contract tests run over, and the twin they are compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torch_ntk.nn import (
    NTKConv1d,
    NTKConv2d,
    NTKConv3d,
    NTKConvTranspose1d,
    NTKConvTranspose2d,
    NTKConvTranspose3d,
    NTKLinear,
)

SIGMA_W, SIGMA_B = 1.7, 0.3

BASES: dict[type, type] = {
    NTKLinear: nn.Linear,
    NTKConv1d: nn.Conv1d,
    NTKConv2d: nn.Conv2d,
    NTKConv3d: nn.Conv3d,
    NTKConvTranspose1d: nn.ConvTranspose1d,
    NTKConvTranspose2d: nn.ConvTranspose2d,
    NTKConvTranspose3d: nn.ConvTranspose3d,
}

# kind, positional arguments, options, shape of one sample, fan-in
Case = tuple[type, tuple[Any, ...], dict[str, Any], tuple[int, ...], int]

CASES: dict[str, Case] = {
    "linear": (NTKLinear, (5, 3), {}, (5,), 5),
    "linear-no-bias": (NTKLinear, (5, 3), {"bias": False}, (5,), 5),
    "linear-sequence": (NTKLinear, (5, 3), {}, (2, 4, 5), 5),
    "linear-one": (NTKLinear, (1, 1), {}, (1,), 1),
    "conv1d": (NTKConv1d, (4, 6, 3), {}, (4, 9), 12),
    "conv1d-same-even": (NTKConv1d, (4, 6, 4), {"padding": "same", "dilation": 2}, (4, 9), 16),
    "conv1d-circular": (
        NTKConv1d,
        (4, 6, 3, 2, 2),
        {"padding_mode": "circular", "groups": 2},
        (4, 9),
        6,
    ),
    "conv2d": (NTKConv2d, (4, 6, 3), {"padding": 1}, (4, 6, 5), 36),
    "conv2d-no-bias": (NTKConv2d, (4, 6, (3, 2)), {"bias": False}, (4, 6, 5), 24),
    "conv2d-valid": (NTKConv2d, (4, 6, (1, 3)), {"padding": "valid"}, (4, 6, 5), 12),
    "conv2d-same": (NTKConv2d, (4, 6, (3, 2)), {"padding": "same"}, (4, 6, 5), 24),
    "conv2d-depthwise": (NTKConv2d, (4, 8, 3), {"groups": 4, "stride": (2, 1)}, (4, 6, 5), 9),
    "conv2d-dilated": (
        NTKConv2d,
        (4, 6, 2),
        {"dilation": (1, 2), "padding": (0, 1)},
        (4, 6, 5),
        16,
    ),
    "conv2d-reflect": (
        NTKConv2d,
        (4, 6, 3),
        {"padding": (2, 1), "padding_mode": "reflect"},
        (4, 6, 5),
        36,
    ),
    "conv2d-replicate": (
        NTKConv2d,
        (4, 6, 3),
        {"padding": "same", "padding_mode": "replicate"},
        (4, 6, 5),
        36,
    ),
    "conv2d-circular": (
        NTKConv2d,
        (4, 6, 3),
        {"padding": 1, "padding_mode": "circular", "stride": 2, "groups": 2},
        (4, 6, 5),
        18,
    ),
    "conv3d": (NTKConv3d, (2, 4, 2), {"padding": 1, "groups": 2}, (2, 4, 3, 3), 8),
    "conv3d-replicate": (
        NTKConv3d,
        (2, 4, (1, 3, 2)),
        {"padding": (0, 1, 1), "padding_mode": "replicate"},
        (2, 4, 3, 3),
        12,
    ),
    # padding, output_padding, groups, bias, dilation by position, as nn.ConvTransposeNd has them
    "transpose1d": (NTKConvTranspose1d, (4, 6, 3, 2, 1, 1, 2, True, 2), {}, (4, 5), 6),
    "transpose2d": (NTKConvTranspose2d, (4, 6, 3), {"stride": (2, 1)}, (4, 3, 4), 36),
    "transpose2d-no-bias": (
        NTKConvTranspose2d,
        (4, 8, (3, 2)),
        {"bias": False, "groups": 4, "padding": (2, 0)},
        (4, 3, 4),
        6,
    ),
    "transpose3d": (
        NTKConvTranspose3d,
        (2, 4, 2),
        {"stride": 2, "output_padding": (1, 0, 0)},
        (2, 2, 2, 1),
        16,
    ),
}


def build(layer_case: Case, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    kind, args, kwargs, _, _ = layer_case
    scales = {"sigma_w": SIGMA_W, "sigma_b": SIGMA_B}
    return kind(*args, **{**kwargs, **scales, "dtype": dtype, **options})


def batch(layer_case: Case, n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *layer_case[3], dtype=dtype)


def standard_twin(layer_case: Case, layer: nn.Module) -> nn.Module:
    """The base layer that holds the scaled weights: the same function, written without scales."""
    kind, args, kwargs, _, fan_in = layer_case
    twin = BASES[kind](*args, **kwargs, dtype=layer.weight.dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.weight * (SIGMA_W / math.sqrt(fan_in)))
        if layer.bias is not None:
            twin.bias.copy_(layer.bias * SIGMA_B)
    return twin


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
