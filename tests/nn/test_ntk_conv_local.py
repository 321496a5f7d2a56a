"""The convolution with weights of its own at each position, against one convolution for each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from torch_ntk import NTKConvLocal2d, empirical_ntk, ntk_param_groups, ntk_parameterize
from torch_ntk import standard_init_ as standard_init

SCALES = {"sigma_w": 1.7, "sigma_b": 0.3, "dtype": torch.float64}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "input_size": (5, 4)},
    "strides": {"kernel_size": (2, 3), "input_size": (7, 5), "stride": (2, 1), "padding": (0, 2)},
    "no bias": {"kernel_size": 2, "input_size": 4, "stride": 3, "padding": 1, "bias": False},
}


@pytest.fixture(params=CASES)
def layer(request: pytest.FixtureRequest) -> NTKConvLocal2d:
    return NTKConvLocal2d(3, 4, **CASES[request.param], **SCALES)


def batch(layer: NTKConvLocal2d, n: int = 2) -> Tensor:
    return torch.randn(n, 3, *layer.input_size, dtype=torch.float64)


def by_hand(layer: NTKConvLocal2d, x: Tensor) -> Tensor:
    """A convolution of torch for each position, of whose output that position is kept."""
    p, q = layer.output_size
    c = layer.sigma_w / (3 * layer.kernel_size[0] * layer.kernel_size[1]) ** 0.5
    out = torch.zeros(len(x), 4, p, q, dtype=x.dtype)
    for i in range(p):
        for j in range(q):
            all_positions = F.conv2d(x, layer.weight[i, j], None, layer.stride, layer.padding)
            out[:, :, i, j] = c * all_positions[:, :, i, j]
            if layer.bias is not None:
                out[:, :, i, j] += layer.sigma_b * layer.bias[:, i, j]
    return out


def test_the_formula(layer: NTKConvLocal2d) -> None:
    x = batch(layer)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=1e-12, atol=1e-12)


# PyTorch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
def test_derivatives(layer: NTKConvLocal2d) -> None:
    x = batch(layer, 1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True, fast_mode=True)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, weights, (sample[None],))[0]

    jacobian = vmap(jacrev(one), (None, 0))(weights, batch(layer))
    assert jacobian["weight"].shape == (2, 4, *layer.output_size, *layer.weight.shape)


def test_the_empirical_kernel_is_that_of_jacobians(layer: NTKConvLocal2d) -> None:
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten())
    x = batch(layer, 3)
    wanted = empirical_ntk(net, x, method="jacobian")
    got = empirical_ntk(net, x, method="structured")
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_tools(layer: NTKConvLocal2d) -> None:
    x = batch(layer)
    for other in (
        copy.deepcopy(layer),
        torch.jit.script(layer),
        torch.fx.symbolic_trace(layer),
        torch.export.export(layer, (x,)).module(),
        torch.compile(layer, backend="aot_eager", fullgraph=True),
    ):
        torch.testing.assert_close(other(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.compiler.reset()
    half = copy.deepcopy(layer).half()
    torch.testing.assert_close(half(x.half()).double(), layer(x), rtol=2e-2, atol=2e-2)


def test_conversions_know_it() -> None:
    torch.manual_seed(0)
    layer = NTKConvLocal2d(2, 300, 3, input_size=4, sigma_w=2.0, sigma_b=0.5)
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(1200, 2))
    rates = {p: g["lr"] for g in ntk_param_groups(net, 0.1) for p in g["params"]}
    assert rates[layer.weight] == pytest.approx(0.1 * 18 / 4)
    assert rates[layer.bias] == pytest.approx(0.1 / 0.25)
    kept = ntk_parameterize(net, mode="preserve")
    drawn = ntk_parameterize(net)
    assert torch.equal(kept[0].weight, layer.weight)
    assert not torch.equal(drawn[0].weight, layer.weight)
    assert drawn[0].weight.std().item() == pytest.approx(1.0, abs=0.03)
    assert drawn[0].sigma_w == 2.0
    with pytest.raises(ValueError, match=r"'0' \(NTKConvLocal2d\)"):
        standard_init(net)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"input_size": 0}, ValueError, "`input_size` must be an integer, at least 1"),
        ({"input_size": (4, 4, 4)}, TypeError, "`input_size` must be an integer or a pair"),
        ({"input_size": (4, 2)}, ValueError, r"`kernel_size` .* \(4, 2\) with padding \(0, 0\)"),
        ({"input_size": 4, "stride": 0}, ValueError, "`stride`"),
        ({"input_size": 4, "padding": "same"}, TypeError, "`padding`"),
        ({"input_size": 4, "bias": 0.1}, TypeError, "`bias` must be True or False"),
        ({"input_size": 4, "sigma_w": 0.0}, ValueError, "`sigma_w`"),
        ({"input_size": 4, "sigma_b": -1.0}, ValueError, "`sigma_b`"),
        ({"input_size": 4, "dtype": torch.int64}, TypeError, "`dtype`"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NTKConvLocal2d(3, 4, 3, **options)


def test_another_size_of_input_is_refused() -> None:
    layer = NTKConvLocal2d(3, 4, 2, input_size=6, stride=2)
    with pytest.raises(ValueError, match=r"`input` must be of 6×6 positions.*input_size"):
        layer(torch.zeros(2, 3, 7, 7))  # of as many outputs
