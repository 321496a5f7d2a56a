"""The activations and the fully connected network."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from torch_ntk.nn import MLP, Abs, Cos, Erf, NTKLinear, Sin


@pytest.mark.parametrize(
    ("module", "function"),
    [(Erf, math.erf), (Sin, math.sin), (Cos, math.cos), (Abs, abs)],
)
def test_activations(module: type[nn.Module], function: Any) -> None:
    activation = module()
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(7, 1).requires_grad_()
    expected = torch.tensor([[function(float(v))] for v in x.detach()], dtype=torch.float64)
    torch.testing.assert_close(activation(x), expected, rtol=1e-14, atol=1e-15)
    assert torch.autograd.gradcheck(activation, (x + 0.1,))
    compiled = torch.compile(activation, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), activation(x))
    assert repr(activation) == f"{module.__name__}()"
    assert type(pickle.loads(pickle.dumps(activation))) is module
    assert torch.equal(copy.deepcopy(activation)(x), activation(x))


def layers(net: nn.Module) -> list[nn.Linear]:
    return [m for m in net.modules() if isinstance(m, nn.Linear)]


def test_mlp_is_the_formula() -> None:
    net = MLP([3, 5, 2], "tanh", sigma_w=1.5, sigma_b=0.2, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    w0, b0, w1, b1 = net.parameters()
    hidden = torch.tanh(1.5 / math.sqrt(3) * x @ w0.T + 0.2 * b0)
    expected = 1.5 / math.sqrt(5) * hidden @ w1.T + 0.2 * b1
    torch.testing.assert_close(net(x), expected, rtol=1e-13, atol=1e-13)


def test_mlp_is_a_sequential() -> None:
    net = MLP((3, 5, 4, 2))
    assert isinstance(net, nn.Sequential)
    assert net.widths == (3, 5, 4, 2)
    assert [type(m) for m in net] == [NTKLinear, nn.ReLU, NTKLinear, nn.ReLU, NTKLinear]
    assert len(net) == 5
    assert net[0] is next(iter(net))
    assert isinstance(net[-1], NTKLinear)
    assert type(net[1:3]) is nn.Sequential
    assert net[1:3][1] is net[2]
    assert list(net.state_dict()) == [f"{i}.{n}" for i in (0, 2, 4) for n in ("weight", "bias")]
    assert [(m.in_features, m.out_features) for m in layers(net)] == [(3, 5), (5, 4), (4, 2)]
    assert torch.equal(copy.deepcopy(net)(torch.ones(1, 3)), net(torch.ones(1, 3)))


def test_single_layer_has_no_activation() -> None:
    assert [type(m) for m in MLP([3, 2])] == [NTKLinear]


@pytest.mark.parametrize(
    ("activation", "gain"),
    [
        ("relu", math.sqrt(2)),
        (nn.ReLU, math.sqrt(2)),
        (nn.ReLU(inplace=True), math.sqrt(2)),
        ("leaky_relu", math.sqrt(2 / (1 + 0.01**2))),
        (lambda: nn.LeakyReLU(0.5), math.sqrt(2 / 1.25)),
        (nn.PReLU(init=0.5), math.sqrt(2 / 1.25)),
        ("tanh", 5 / 3),
        ("selu", 0.75),
        ("erf", 1.0),
        ("gelu", 1.0),
        (Sin, 1.0),
        ("identity", 1.0),
    ],
)
def test_gain_follows_the_activation(activation: Any, gain: float) -> None:
    scales = [m.sigma_w for m in layers(MLP([3, 4, 4, 2], activation))]
    assert scales == pytest.approx([gain, gain, 1.0], rel=1e-15)
    assert [m.sigma_w for m in layers(MLP([3, 4, 2], activation, sigma_w=0.7))] == [0.7, 0.7]


def test_every_named_activation_builds() -> None:
    names = "relu leaky_relu elu selu gelu silu softplus tanh sigmoid erf sin cos abs identity"
    for name in names.split():
        assert MLP([2, 3, 1], name)(torch.ones(4, 2)).shape == (4, 1)


def test_an_activation_module_is_copied_for_each_place() -> None:
    activation = nn.PReLU(init=0.3)
    net = MLP([2, 3, 3, 1], activation, dtype=torch.float64)
    first, second = net[1], net[3]
    assert first.weight is not second.weight
    assert first.weight is not activation.weight
    assert first.weight.dtype is torch.float64
    assert activation.weight.dtype is torch.float32


def test_bias_dtype_and_device() -> None:
    net = MLP([2, 3, 1], nn.PReLU, bias=False, device="meta", dtype=torch.float16)
    assert all(p.is_meta and p.dtype is torch.float16 for p in net.parameters())
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "1.weight", "2.weight"]


def test_standard_parameterization_is_the_same_random_function() -> None:
    torch.manual_seed(0)
    ntk = MLP([3, 400, 1], sigma_b=0.3, dtype=torch.float64)
    torch.manual_seed(0)
    standard = MLP([3, 400, 1], sigma_b=0.3, parameterization="standard", dtype=torch.float64)
    assert [type(m) for m in layers(standard)] == [nn.Linear, nn.Linear]
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(standard(x), ntk(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([3],), {}, ValueError, "`widths` must be at least two sizes; got 1"),
        ((3,), {}, TypeError, "`widths` must be a sequence"),
        (("32",), {}, TypeError, "`widths` must be a sequence"),
        (([3, 0, 1],), {}, ValueError, r"`widths\[1\]` must be a positive integer; got 0"),
        (([3, 2.0],), {}, TypeError, r"`widths\[1\]`"),
        (([3, 2], "swish"), {}, ValueError, "`activation` must be one of 'relu'.*got 'swish'"),
        (([3, 2, 1], torch.relu), {}, TypeError, "`activation` must be .* not torch.relu"),
        (([3, 2, 1], lambda: torch.relu), {}, TypeError, "`activation` must be one that makes"),
        (([3, 2], 3), {}, TypeError, "`activation` must be .* got 3"),
        (([3, 2],), {"parameterization": "mup"}, ValueError, "`parameterization` .* 'ntk'"),
        (([3, 2],), {"dtype": torch.complex64}, TypeError, "`dtype` must be a real floating-point"),
        (
            ([3, 2],),
            {"sigma_w": "auto"},
            ValueError,
            r"^`sigma_w` must be 'gain' or a finite number greater than 0; got 'auto'\.$",
        ),
        (([3, 2],), {"sigma_w": 0}, ValueError, "`sigma_w`"),
        (([3, 2],), {"sigma_b": -1.0}, ValueError, "`sigma_b`"),
        (([3, 2],), {"bias": 0.1}, TypeError, "`bias`"),
    ],
)
def test_refusals(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        MLP(*arguments, **options)
