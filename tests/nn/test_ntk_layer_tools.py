"""Every NTK layer under the tools that a module must stand: copies, pickles, compilers, tracers."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from inspect import signature

import pytest
import torch
from ntk_layer_cases import CASES, SIGMA_B, SIGMA_W, Case, batch, build, close
from torch import nn

from torch_ntk.nn import NTKConv2d, NTKLinear

# The forward passes that differ: with and without bias, and each way to pad.
DISTINCT = (
    *("linear", "linear-no-bias", "conv1d-same-even", "conv2d-depthwise", "conv2d-circular"),
    *("conv3d", "conv3d-replicate", "transpose1d"),
)
distinct_cases = pytest.mark.parametrize("layer_case", DISTINCT, indirect=True)


@pytest.fixture(params=CASES)
def layer_case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def test_meta_device_then_to_empty(layer_case: Case) -> None:
    layer = build(layer_case, device="meta")
    assert layer(batch(layer_case).to("meta")).device.type == "meta"
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    assert torch.equal(layer.weight, build(layer_case).weight)
    assert (
        torch.nn.utils.skip_init(layer_case[0], *layer_case[1], **layer_case[2]).weight.device.type
        == "cpu"
    )


def test_copies_and_pickles(layer_case: Case) -> None:
    layer = build(layer_case)
    x = batch(layer_case)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert (twin.sigma_w, twin.sigma_b) == (SIGMA_W, SIGMA_B)
        assert twin.weight is not layer.weight
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = build(layer_case)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), layer(x))


@distinct_cases
def test_compiles_in_one_graph(layer_case: Case) -> None:
    torch.compiler.reset()
    layer = build(layer_case)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = batch(layer_case)
    close(compiled(x), layer(x))
    layer.sigma_w = 0.5
    close(compiled(x), layer(x))


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)
def test_compiles_with_inductor() -> None:
    """Two axes of input, so that inductor may fuse the bias into the product."""
    torch.compiler.reset()
    net = nn.Sequential(
        NTKConv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten(), NTKLinear(48, 2)
    ).double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():  # where gradients are wanted, inductor compiles the same graph anew
        close(torch.compile(net, fullgraph=True)(x), net(x))


@distinct_cases
def test_exports(layer_case: Case) -> None:
    layer = build(layer_case)
    x = batch(layer_case)
    close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_traces_symbolically(layer_case: Case) -> None:
    layer = build(layer_case)
    x = batch(layer_case)
    # A size of the output that is given at the call decides what is computed.
    fixed = {"output_size": None} if "output_size" in signature(layer.forward).parameters else {}
    close(torch.fx.symbolic_trace(layer, fixed)(x), layer(x))


def test_parametrizations_apply() -> None:
    layer = NTKLinear(4, 3, sigma_w=2.0, sigma_b=0.0, dtype=torch.float64)
    torch.nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(2, 4, dtype=torch.float64)
    close(layer(x), x @ layer.weight.T)
