"""Kernels of finite networks come to the lifted ones with the root of the width."""

# ruff: noqa: E501  # tables are easier to read with one row a line
from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from analytic_cases import SCALES
from small_nets import Function, Plus, conv, conv1d, dense
from test_finite_networks import with_outputs
from test_lift_sequences import Block, Recurring, many_heads, of_inputs, sequences, tied
from test_position_maps import Graph, Masked
from test_products import excited, gated, product, swiglu
from test_standard import DEFAULT
from torch import Tensor, nn

from torch_ntk import analytic_ntk, empirical_ntk
from torch_ntk import nn as ntk

MORE_DRAWS = {"attention of many heads": 160}  # which scatters more than the others
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def gap(*layers: nn.Module, n: int) -> nn.Module:
    """Layers, then a mean over all positions and four outputs."""
    return nn.Sequential(*layers, nn.ReLU(), Function(lambda t: t.flatten(2).mean(2)), dense(n, 4))


def transposed(n: int) -> nn.Module:
    up = ntk.NTKConvTranspose1d(n, n, 3, stride=2, padding=1, **SCALES)
    return gap(conv1d(2, n), nn.ReLU(), up, n=n)


def local(n: int) -> nn.Module:
    first = ntk.NTKConvLocal2d(2, n, 2, input_size=(3, 2), **SCALES)
    second = ntk.NTKConvLocal2d(n, n, (2, 1), input_size=(2, 1), padding=(1, 0), **SCALES)
    return gap(first, nn.ReLU(), second, n=n)


def three_axes(n: int) -> nn.Module:
    first = ntk.NTKConv3d(2, n, (2, 1, 2), **SCALES)
    return gap(first, nn.ReLU(), ntk.NTKConv3d(n, n, (1, 2, 1), padding=(0, 1, 0), **SCALES), n=n)


def moved(n: int) -> nn.Module:
    """Resizing, a slice, and what is less the mean over positions."""

    def between(t: Tensor) -> Tensor:
        t = F.interpolate(t, size=6, mode="linear")[:, :, 1:]
        return t - t.mean(2, keepdim=True)

    return gap(conv1d(2, n), Function(between), nn.GELU(), conv1d(n, n), n=n)


def normed(n: int) -> nn.Module:
    norms = nn.GroupNorm(2, n, **DOUBLE), nn.GroupNorm(1, n, affine=False)
    body = nn.Sequential(norms[0], nn.ReLU(), conv1d(n, n, 1))
    return gap(conv1d(2, n), Plus(body), norms[1], n=n)


def shuffled(n: int) -> nn.Module:
    """A depthwise convolution, and channels that become positions."""
    apart = conv(n, n, 2, groups=n), conv(n, 4 * n, 1), nn.PixelShuffle(2)
    return gap(conv(2, n, 2), nn.ReLU(), *apart, nn.ReLU(), conv(n, n, 2), n=n)


def vectors(kind: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    return lambda n: nn.Sequential(dense(6, n, 1.2), kind(), dense(n, n, 1.2), kind(), dense(n, 4))


def images(end: Callable[[int], list[nn.Module]]) -> Callable[[int], nn.Module]:
    layers = lambda n: (conv(2, n, 2), nn.ReLU(), conv(n, n, 2), nn.ReLU())  # noqa: E731
    return lambda n: nn.Sequential(*layers(n), nn.Flatten(), *end(n))


def batch(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), **DOUBLE)


LINE, TOKENS = batch(2, 5), sequences(3)
MATRICES = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2), **DOUBLE) - 0.3
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]) > 0
# name: (network of a width, batch, what is said of ordinary layers)
ROWS: dict[str, tuple[Callable[[int], nn.Module], Any, Any]] = {
    "dense": (vectors(nn.ReLU), batch(6), None),
    "quadrature": (vectors(nn.Tanh), batch(6), None),
    "convolutions": (images(lambda n: [dense(9 * n, 4)]), batch(2, 5, 5), None),
    "transposed convolutions": (transposed, LINE, None),
    "local convolutions": (local, batch(2, 3, 2), None),
    "three axes": (three_axes, batch(2, 2, 2, 2), None),
    "maps of positions": (moved, LINE, None),
    "a graph for each sample": (lambda n: Graph(3, n, 4), (TOKENS, MATRICES), None),
    "masks": (lambda n: Masked(n, 4), (TOKENS, MASK), None),
    "channels apart": (shuffled, batch(2, 3, 3), None),
    "norms": (normed, LINE, None),
    "product": (lambda n: product(n, 4), batch(6), None),
    "gates of channels": (lambda n: excited(n, 4), batch(3, 3, 3), None),
    "gated linear unit": (lambda n: gated(n, 4), batch(6), None),
    "gated tokens": (lambda n: swiglu(n, 4), TOKENS, None),
    "attention": (tied, TOKENS, None),
    "attention of inputs": (of_inputs, TOKENS, None),
    "attention of many heads": (many_heads, TOKENS, None),
    "a block of a transformer": (Block, TOKENS, None),
    "recurrent": (lambda n: Recurring(n, False, nonlinearity="erf"), TOKENS, None),
    "recurrent both ways": (lambda n: Recurring(n, False, nonlinearity="erf", bidirectional=True), TOKENS, None),
    "ordinary convolutions": (*DEFAULT["cnn"], "torch"),
    "mixed": (*DEFAULT["mixed"], "torch"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_relative_error_falls_with_the_root_of_the_width(name: str) -> None:
    """In the geometric mean over draws: kernels cubic in K have draws far from all others."""
    build, x, standard = ROWS[name]
    widths = (64, 512) if standard else (32, 256)
    draws = MORE_DRAWS.get(name, 40)
    torch.manual_seed(zlib.crc32(name.encode()))
    errors = []
    for n in widths:
        limit = analytic_ntk(build(n), x, standard=standard)
        nets = (build(n) if standard else with_outputs(build(n), 4) for _ in range(draws))
        found = torch.stack([empirical_ntk(net, x, output="mean", check=False) for net in nets])
        away = (found - limit).norm(dim=(1, 2)) / limit.norm()
        errors.append(float(away.log().mean()))
    slope = (errors[1] - errors[0]) / math.log(widths[1] / widths[0])
    if standard:  # layers after the first have a share of the kernel that grows with the width
        assert -0.6 < slope < -0.15, errors
    else:
        assert abs(slope + 0.5) < 0.1, errors
