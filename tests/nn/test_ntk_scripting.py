"""The NTK layers under `torch.jit.script`, as their `torch.nn` bases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ntk_layer_cases import CASES, batch, build, close
from torch import Tensor, nn

from torch_ntk.nn import MLP, Abs, Cos, Erf, NTKConv1d, NTKLinear, Sin

# PyTorch announces the end of TorchScript in every one of its functions.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def gradients(module: Any, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(module(x).sin().sum(), list(module.parameters()))


@pytest.mark.parametrize("layer_case", CASES.values(), ids=CASES.keys())
def test_a_scripted_layer_is_the_same_function(layer_case: Any) -> None:
    layer, x = build(layer_case), batch(layer_case)
    scripted = torch.jit.script(layer)
    close(scripted(x), layer(x))
    for ours, theirs in zip(gradients(scripted, x), gradients(layer, x), strict=True):
        close(ours, theirs)
    assert (scripted.sigma_w, scripted.sigma_b) == (layer.sigma_w, layer.sigma_b)


def test_defaults_script() -> None:
    layer = NTKLinear(3, 2)
    x = torch.randn(4, 3)
    close(torch.jit.script(layer)(x), layer(x), 1e-6)


def test_an_empty_sum_scripts() -> None:
    layer = NTKLinear(1, 2, dtype=torch.float64)
    layer.weight, layer.in_features = nn.Parameter(layer.weight[:, :0].detach()), 0
    x = torch.ones(3, 0, dtype=torch.float64)
    close(torch.jit.script(layer)(x), (0.1 * layer.bias).expand(3, 2))


def test_a_scripted_network_is_the_same_function() -> None:
    net = nn.Sequential(MLP([3, 5, 4], "tanh"), Erf(), Sin(), Cos(), Abs()).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    close(torch.jit.script(net)(x), net(x))


@pytest.mark.parametrize("half_weights", [True, False], ids=["weights", "autocast"])
@pytest.mark.parametrize("make", [NTKLinear, lambda n, m: NTKConv1d(n, m, 1)])
def test_a_scripted_layer_does_not_overflow_in_float16(make: Any, half_weights: bool) -> None:
    layer = make(4096, 1)
    nn.init.constant_(layer.weight, 4.0)
    x = torch.full((1, 4096, 1) if layer.weight.ndim > 2 else (1, 4096), 8.0)
    if half_weights:
        layer, x = layer.half(), x.half()
    scripted = torch.jit.script(layer)
    with torch.autocast("cpu", torch.float16, enabled=not half_weights):
        y = scripted(x)  # the unscaled sum is 131072, and float16 ends at 65504
    assert y.dtype is torch.float16
    torch.testing.assert_close(
        y.float(), 2048.0 + 0.1 * layer.bias.float().view_as(y), rtol=2e-3, atol=0
    )
