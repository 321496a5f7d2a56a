"""`taylor_expand`: exact for polynomials, and term by term against nested backward passes."""

from __future__ import annotations

from math import factorial
from typing import Any

import pytest
import torch
from cases import CASES, Case, by_name
from linearize_cases import ROWS
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_ntk import LinearizedModel, TaylorModel, linearize, taylor_expand
from torch_ntk.linearize import expand

Parameters = dict[str, Tensor]

NAMES = (
    "ntk_conv",
    "mlp",
    "batchnorm1d",
    "layer_norm",
    "instance_norm",
    "tied_weights",
    "layer_three_times",
    "spectral_norm_parametrized",
    "lstm",
    "gru",
    "attention",
    "transformer_encoder",
    "counts_and_remembers",
)


def linear_layers(depth: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(4, 4, bias=bias, dtype=torch.float64) for _ in range(depth)])


def move(model: TaylorModel, size: float = 0.5) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn_like(p))


class WrittenOut(nn.Module):
    """Normalization by elementary operations; those of torch have no right third derivative."""

    def __init__(self, norm: nn.LayerNorm | nn.InstanceNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.images = isinstance(norm, nn.InstanceNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        axes, shape = ((-2, -1), (-1, 1, 1)) if self.images else ((-1,), (-1,))
        centered = x - x.mean(axes, keepdim=True)
        variance = centered.square().mean(axes, keepdim=True)
        unit = centered * (variance + self.eps) ** -0.5
        return self.weight.reshape(shape) * unit + self.bias.reshape(shape)


def written_out(net: nn.Module) -> nn.Module:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.LayerNorm, nn.InstanceNorm2d):  # others derive from them
                setattr(module, name, WrittenOut(child))
    return net


class Outputs(nn.Module):
    """A network whose forward gives what a row of the table takes of it."""

    def __init__(self, net: nn.Module, case: Case) -> None:
        super().__init__()
        self.net, self.case = net, case

    def forward(self, x: Any) -> Tensor:
        return self.case.outputs(self.net, x)


def taylor_loop(net: nn.Module, delta: Parameters, x: Any, order: int) -> Tensor:
    """The Taylor polynomial of `t -> f(θ_0 + t δ)` at t = 1, by `order` nested backward passes."""
    net = written_out(net.eval())
    theta_0 = {k: p.detach() for k, p in net.named_parameters()}
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        out = functional_call(net, {k: v + t * delta[k] for k, v in theta_0.items()}, (x,))
    entries = []
    for term in out.reshape(-1):
        total = term
        for k in range(1, order + 1):
            if not term.requires_grad:  # the derivatives from here on are zero
                break
            (term,) = torch.autograd.grad(term, t, create_graph=True)
            total = total + term / factorial(k)
        entries.append(total)
    return torch.stack(entries).reshape(out.shape)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_product_of_linear_layers_is_a_polynomial_of_its_depth(depth: int) -> None:
    """Exact from order = depth on, and not before."""
    x = torch.randn(5, 4, dtype=torch.float64)
    for order in range(1, depth + 2):
        model = taylor_expand(linear_layers(depth), order)
        move(model)
        difference = (model(x) - model.network(x)).abs().max()
        if order >= depth:
            assert difference < 1e-12
        else:
            assert difference > 1e-2


def test_bags_before_a_linear_layer_are_a_polynomial_of_degree_two() -> None:
    net = nn.Sequential(nn.EmbeddingBag(5, 3, padding_idx=0), nn.Linear(3, 2, bias=False)).double()
    model = taylor_expand(net, 2)
    move(model)
    x = torch.tensor([[1, 1, 0], [4, 2, 3]])
    torch.testing.assert_close(model(x), model.network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
def test_terms_are_derivatives_along_the_displacement(name: str, order: int) -> None:
    case = by_name(name)
    net, x = case.build(), case.inputs(2)
    model = taylor_expand(net, order)
    torch.testing.assert_close(model(x), case.build().eval()(x), rtol=1e-12, atol=1e-12)
    move(model, 0.3)
    delta = {k: v.detach() for k, v in model.displacement().items()}
    expected = taylor_loop(case.build(), delta, x, order)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


# Not for the oracle: torch.compile, and what torch has no second derivative of, or a wrong one.
NOT_FOR_THE_LOOP = ("compiled", "weight_norm", "embedding_bag")
FOR_THE_LOOP = [c for c in CASES if not c.slow and not c.name.startswith(NOT_FOR_THE_LOOP)]


@pytest.mark.parametrize("case", FOR_THE_LOOP, ids=lambda c: c.name)
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
def test_second_order_of_every_case(case: Case) -> None:
    """Also before anything has moved, and where forward mode is missing or wrong."""
    model = taylor_expand(case.build(), 2, forward_fn=case.options.get("forward_fn"))
    x = case.inputs(2)
    if case.name == "gradient_stopped_by_no_grad":
        with pytest.raises(ValueError, match=r"torch\.no_grad.*try order=1"):
            case.returned(model, x)
        return
    if case.name == "mobilenet_v3":  # torch has no second derivative of hardsigmoid
        with pytest.raises(ValueError, match="hardsigmoid_backward"):
            case.returned(model, x)
        return
    case.returned(model, x)
    move(model, 0.3)
    delta = {f"net.{k}": v.detach() for k, v in model.displacement().items()}
    expected = taylor_loop(Outputs(case.build(), case), delta, x, 2)
    torch.testing.assert_close(case.returned(model, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_gradients_are_those_of_the_polynomial(order: int) -> None:
    case = by_name("mlp")
    net, x = case.build(), case.inputs(2)
    model = taylor_expand(net, order)
    move(model, 0.3)
    model(x).square().sum().backward()
    delta = {k: v.detach().requires_grad_() for k, v in model.displacement().items()}
    taylor_loop(case.build(), delta, x, order).square().sum().backward()
    for name, p in model.network.named_parameters():
        torch.testing.assert_close(p.grad, delta[name].grad, rtol=1e-10, atol=1e-10)


def test_the_error_falls_with_the_power_after_the_order() -> None:
    """Halving δ divides the error of order k by 2^(k+1)."""
    net = by_name("mlp").build()
    x = by_name("mlp").inputs(3)
    for order in (1, 2, 3):
        errors = []
        for size in (0.02, 0.01):
            torch.manual_seed(0)
            model = taylor_expand(net, order)
            move(model, size)
            errors.append(float((model(x) - model.network(x)).detach().norm()))
        assert errors[0] / errors[1] == pytest.approx(2 ** (order + 1), rel=0.1)


def test_order_one_is_linearize() -> None:
    net, x = by_name("mlp").build(), by_name("mlp").inputs(3)
    first, second = taylor_expand(net, 1), linearize(net)
    assert isinstance(first, LinearizedModel)
    torch.manual_seed(0)
    move(first)
    torch.manual_seed(0)
    move(second)
    assert torch.equal(first(x), second(x))


def test_expand_of_a_function_by_hand() -> None:
    """`f = a² b`: along δ its terms are a²b, 2abα + a²β, α²b + 2aαβ, α²β."""
    a, b, alpha, beta = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 3.0, 0.5, -1.0))
    terms = (12.0, 2 * 2 * 3 * 0.5 - 4, 0.25 * 3 - 2.0, -0.25)
    for order in range(4):
        value = expand(
            lambda p: p["a"] ** 2 * p["b"], {"a": a, "b": b}, {"a": alpha, "b": beta}, order
        )
        assert float(value) == pytest.approx(sum(terms[: order + 1]), rel=1e-14)


@pytest.mark.parametrize("order", [2, 3])
def test_an_operation_that_torch_gets_wrong_in_nested_forward_mode(order: int) -> None:
    """`det` loses a term there, and no error of torch's says so; it is a cubic polynomial."""

    class Det(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(self.weight * x[:, None, None])

    net, x = Det(), torch.rand(2, dtype=torch.float64) + 1
    model = taylor_expand(net, order)
    move(model, 0.3)
    with torch.no_grad():
        delta, exact = model.network.weight - net.weight, model.network(x)
        third = torch.linalg.det(delta * x[:, None, None])
    expected = exact if order == 3 else exact - third
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


class DropsASlope(torch.autograd.Function):
    """`x²`, with a backward pass that is right once and takes its factor for a constant."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.slope = 2 * x.detach()
        return x**2

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return ctx.slope * g


def test_a_second_derivative_that_is_wrong_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return DropsASlope.apply(self.layer(x))

    x = torch.randn(3, 4, dtype=torch.float64)
    assert linearize(Net())(x).shape == (3, 2)
    with pytest.raises(ValueError, match=r"same derivatives.*order 2.*try order=1"):
        taylor_expand(Net(), 2)(x)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["function_of_the_old_kind", "weight_norm_parametrized"])
def test_without_forward_mode(name: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested backward passes, also for training.

    In the oracle weight normalization is written out: torch's second derivative is wrong.
    """

    def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
        assert dim == 0
        return g * v / v.square().sum(1, keepdim=True).sqrt()

    make, batches = ROWS[name].make, ROWS[name].batches
    x, _ = batches()
    torch.manual_seed(1)
    model = taylor_expand(make(), order)
    move(model, 0.3)
    delta = {k: v.detach().requires_grad_() for k, v in model.displacement().items()}
    out = model(x)
    monkeypatch.setattr(torch, "_weight_norm", weight_norm)
    torch.manual_seed(1)
    expected = taylor_loop(make(), delta, x, order)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    out.square().sum().backward()
    expected.square().sum().backward()
    for k, p in model.network.named_parameters():
        torch.testing.assert_close(p.grad, delta[k].grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint_reentrant"])
def test_activation_checkpointing_is_passed_over(name: str) -> None:
    """Also for gradients by inputs, and for what autograd gives afterwards."""
    found = []
    for make in (ROWS[name].make, ROWS["checkpoint_reentrant"].reference):
        assert make is not None
        torch.manual_seed(1)
        model = taylor_expand(make(), 2)
        torch.manual_seed(2)
        move(model, 0.3)
        x = torch.ones(2, 5, dtype=torch.float64, requires_grad=True)
        out = model(x)
        out.square().sum().backward()
        found.append([out, x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [True, 1.0, 2.0, "2", None])
def test_an_order_that_is_no_integer(order: object) -> None:
    with pytest.raises(TypeError, match="`order` must be a positive integer"):
        taylor_expand(linear_layers(1), order)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [0, -1])
def test_an_order_below_one(order: int) -> None:
    with pytest.raises(ValueError, match="`order` must be a positive integer"):
        taylor_expand(linear_layers(1), order)
