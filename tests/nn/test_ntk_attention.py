"""Self-attention in NTK parameterization, head by head and against torch's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from torch_ntk import NTKSelfAttention, empirical_ntk, ntk_param_groups, ntk_parameterize
from torch_ntk import standard_init_ as standard_init

SIGMAS = {"sigma_query": 1.2, "sigma_key": 0.7, "sigma_value": 1.4, "sigma_out": 0.9}
CASES: dict[str, dict[str, Any]] = {
    "softmax": {"num_heads": 3},
    "identity": {"attention": "identity", "num_heads": 2, "scaling": "sqrt"},
    "relu": {"attention": "relu", "bias": True, "sigma_b": 0.3},
    "abs": {"attention": "abs", "num_heads": 6},
    "usual": {"scaling": "sqrt", "num_heads": 2, "bias": True},
    "small heads": {"num_heads": 4, "head_dim": 2},
    "wide heads": {"num_heads": 2, "head_dim": 5, "scaling": "sqrt"},
}
ZETA = {
    "softmax": lambda g: g.exp() / g.exp().sum(-1, keepdim=True),
    "identity": lambda g: g,
    "relu": lambda g: g.clamp(min=0),
    "abs": lambda g: g.sign() * g,
}


@pytest.fixture(params=CASES)
def layer(request: pytest.FixtureRequest) -> NTKSelfAttention:
    torch.manual_seed(0)
    return NTKSelfAttention(6, 4, **{**SIGMAS, **CASES[request.param]}, dtype=torch.float64)


def batch(n: int = 3) -> Tensor:
    return torch.randn(n, 5, 6, dtype=torch.float64)


def by_hand(layer: NTKSelfAttention, x: Tensor) -> Tensor:
    """One sample `[T, C]`, head by head."""
    d = layer.head_dim or 6 // layer.num_heads
    power = 1.0 if layer.scaling == "linear" else 0.5
    query_weight = layer.key_weight if layer.query_weight is None else layer.query_weight
    heads = []
    for h in range(layer.num_heads):
        rows = slice(h * d, (h + 1) * d)
        q, k, v = (
            sigma / math.sqrt(6) * x @ weight[rows].T
            for sigma, weight in (
                (layer.sigma_query, query_weight),
                (layer.sigma_key, layer.key_weight),
                (layer.sigma_value, layer.value_weight),
            )
        )
        heads.append(ZETA[layer.attention](q @ k.T / d**power) @ v)
    y = torch.cat(heads, 1) @ layer.out_weight.T * layer.sigma_out / math.sqrt(len(heads) * d)
    return y if layer.bias is None else y + layer.sigma_b * layer.bias


def test_the_formula(layer: NTKSelfAttention) -> None:
    x = batch()
    wanted = torch.stack([by_hand(layer, s) for s in x])
    torch.testing.assert_close(layer(x), wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer(x[0]), wanted[0], rtol=1e-11, atol=1e-11)
    assert (layer.query_weight is None) == (layer.scaling == "linear")


def test_masked_positions_are_as_if_they_were_not_there(layer: NTKSelfAttention) -> None:
    x = batch()
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    got = layer(x, key_padding_mask=mask)
    torch.testing.assert_close(got[0], layer(x[:1])[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got[1, :3], layer(x[1:2, :3])[0], rtol=1e-11, atol=1e-11)


def test_torch_computes_the_same() -> None:
    layer = NTKSelfAttention(6, 6, num_heads=2, scaling="sqrt", **SIGMAS, dtype=torch.float64)
    theirs = nn.MultiheadAttention(6, 2, bias=False, batch_first=True, dtype=torch.float64)
    scales = layer.parameter_scales()
    names = ("query_weight", "key_weight", "value_weight")
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([getattr(layer, n) * scales[n] for n in names]))
        theirs.out_proj.weight.copy_(layer.out_weight * scales["out_weight"])
    x = batch()
    wanted = theirs(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(layer(x), wanted, rtol=1e-11, atol=1e-11)


# PyTorch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
def test_derivatives_and_the_empirical_kernel(layer: NTKSelfAttention) -> None:
    x = batch(1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True, fast_mode=True)
    net = nn.Sequential(layer, nn.Flatten())
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, weights, (sample[None],))[0]

    x = batch()
    j = torch.cat([j.flatten(2) for j in vmap(jacrev(one), (None, 0))(weights, x).values()], 2)
    got = empirical_ntk(net, x, method="structured")
    torch.testing.assert_close(got, torch.einsum("nip,mjp->nmij", j, j), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_tools(layer: NTKSelfAttention) -> None:
    x = batch()
    for other in (
        copy.deepcopy(layer),
        torch.jit.script(layer),
        torch.export.export(layer, (x,)).module(),
        torch.compile(layer, backend="aot_eager", fullgraph=True),
    ):
        torch.testing.assert_close(other(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.compiler.reset()
    half = copy.deepcopy(layer).half()
    torch.testing.assert_close(half(x.half()).double(), layer(x), rtol=5e-2, atol=5e-2)


def test_parameter_groups_move_it_as_the_layer_with_scaled_weights(layer: NTKSelfAttention) -> None:
    """With sigmas of the root of the fan-in the factors are 1: the standard parameterization."""
    names = ("num_heads", "head_dim", "attention", "scaling")
    options = {name: getattr(layer, name) for name in names}
    ones = {**dict.fromkeys(SIGMAS, 6**0.5), "sigma_out": layer.out_weight.shape[1] ** 0.5}
    twin = NTKSelfAttention(
        6, 4, **options, **ones, bias=layer.bias is not None, sigma_b=1.0, dtype=torch.float64
    )
    scales = layer.parameter_scales()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(getattr(layer, name) * scales[name])
    x, y = batch(), torch.randn(3, 5, 4, dtype=torch.float64)
    for net, groups in ((layer, ntk_param_groups(layer, 0.1)), (twin, twin.parameters())):
        optimizer = torch.optim.SGD(groups, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-10, atol=1e-10)


def test_conversions_know_it() -> None:
    layer = NTKSelfAttention(6, 4, sigma_out=2.0)
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2))
    kept, drawn = ntk_parameterize(net, mode="preserve"), ntk_parameterize(net)
    assert torch.equal(kept[0].value_weight, layer.value_weight)
    assert not torch.equal(drawn[0].value_weight, layer.value_weight)
    assert drawn[0].sigma_out == 2.0
    with pytest.raises(ValueError, match=r"'0' \(NTKSelfAttention\)"):
        standard_init(net)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_heads": 4}, ValueError, "`num_heads` must be a divisor.* 6; got 4.*head_dim="),
        ({"head_dim": 0}, ValueError, "`head_dim`"),
        ({"attention": "tanh"}, ValueError, "`attention` must be one of 'softmax', 'identity'"),
        ({"scaling": "none"}, ValueError, "`scaling` must be one of 'linear', 'sqrt'"),
        ({"sigma_query": 0.0}, ValueError, "`sigma_query` must be a finite number greater"),
        ({"sigma_out": None}, TypeError, "`sigma_out`"),
        ({"sigma_b": -1.0}, ValueError, "`sigma_b`"),
        ({"bias": 1.2}, TypeError, "`bias`"),
        ({"dtype": torch.int32}, TypeError, "`dtype`"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NTKSelfAttention(6, 4, **options)
