"""Derivatives by the inputs, also where two inputs are equal and angles have a corner."""

from __future__ import annotations

import pytest
import torch
from analytic_cases import NETS
from small_nets import conv, dense
from torch import Tensor, nn

from torch_ntk import CNTK, Abs, Erf, analytic_kernels, analytic_nngp, analytic_ntk, mlp_kernels

BY_NAME = {net.name: net for net in NETS}
SMALL = {
    "mlp": (4,),
    "cntk": (2, 3, 2),
    "cntk gap": (2, 3, 2),
}


def kernels(name: str, activation: str):  # type: ignore[no-untyped-def]
    """NNGP or NTK as functions of inputs."""
    if name == "mlp":
        return lambda a, b: mlp_kernels(a, b, 3, activation, 1.3, 0.2).ntk
    pooling = "gap" if name == "cntk gap" else "flatten"
    return CNTK(3, pooling=pooling, activation=activation, sigma_b=0.2)


def samples(n: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "sin"])
@pytest.mark.parametrize("name", SMALL)
def test_two_sets(name: str, activation: str) -> None:
    kernel = kernels(name, activation)
    assert torch.autograd.gradcheck(kernel, (samples(2, SMALL[name]), samples(2, SMALL[name])))


@pytest.mark.parametrize(
    "name",
    [
        "mlp_tanh",
        "mlp_leaky_relu",
        "residual",
        "layer_norm",
        "u_net",
        "local_gap",
        "three_axes_flat",
    ],
)
@pytest.mark.parametrize("kind", [analytic_nngp, analytic_ntk])
def test_modules(name: str, kind) -> None:  # type: ignore[no-untyped-def]
    net = BY_NAME[name]
    model = net.build(3)
    x1, x2 = net.inputs(2).requires_grad_(), net.inputs(1, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kind(model, a, b), (x1, x2), fast_mode=True)


@pytest.mark.parametrize("activation", ["relu", "erf", "abs"])
@pytest.mark.parametrize("name", SMALL)
def test_the_diagonal_of_one_set(name: str, activation: str) -> None:
    """K(x, x) is smooth in x although K(x, x') has a corner in its second derivatives."""
    shape = SMALL[name]
    net = _network(name, activation)

    def diagonal(x: Tensor) -> Tensor:
        return analytic_nngp(net, x).diagonal()

    assert torch.autograd.gradcheck(diagonal, (samples(2, shape),), atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_one_set(name: str, kind: str) -> None:
    """Off the diagonal too, and the same as of two sets for the part that is."""
    net = _network(name, "relu")
    x = samples(3, SMALL[name])
    weights = torch.randn(3, 3, dtype=torch.float64)
    weights = (weights + weights.T).fill_diagonal_(0)
    (one,) = torch.autograd.grad((getattr(analytic_kernels(net, x), kind) * weights).sum(), x)
    a, b = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    two = torch.autograd.grad((getattr(analytic_kernels(net, a, b), kind) * weights).sum(), (a, b))
    torch.testing.assert_close(one, two[0] + two[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "abs", "erf"])
@pytest.mark.parametrize("name", SMALL)
def test_the_first_input_beside_an_equal_second_one(name: str, activation: str) -> None:
    """There, ∂K(x, x')/∂x at x' = x is half the derivative of K(x, x) by symmetry."""
    net = _network(name, activation)
    x = samples(2, SMALL[name])
    (half,) = torch.autograd.grad(analytic_nngp(net, x).trace() / 2, x)
    a = x.detach().clone().requires_grad_()
    (one,) = torch.autograd.grad(analytic_nngp(net, a, x.detach().clone()).trace(), a)
    assert bool(torch.isfinite(one).all())
    torch.testing.assert_close(one, half, rtol=1e-5, atol=1e-7)
    direction = torch.randn_like(a)
    step = 1e-5
    with torch.no_grad():
        moved = [analytic_nngp(net, x + s * step * direction, x.clone()).trace() for s in (1, -1)]
    slope = float(moved[0] - moved[1]) / (2 * step)
    assert abs(float((one * direction).sum()) - slope) < 1e-5 * max(1.0, abs(slope))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("sigma_b", [0.0, 0.2])
@pytest.mark.parametrize("equal", [True, False])
def test_zero_images_have_finite_derivatives(name: str, sigma_b: float, equal: bool) -> None:
    net = _network(name, "relu", sigma_b)
    x = torch.cat([torch.zeros(2, *SMALL[name]), torch.ones(1, *SMALL[name])]).double()
    x[2, 0] = 0  # and black borders
    a = x.clone().requires_grad_()
    b = None if equal else x.clone().requires_grad_()
    for k in analytic_kernels(net, a, b):
        assert bool(torch.isfinite(k).all())
        found = torch.autograd.grad(k.sum(), [a] if b is None else [a, b], retain_graph=True)
        assert all(bool(torch.isfinite(g).all()) for g in found)


def test_derivatives_stop_where_the_caller_says() -> None:
    net, x = _network("mlp", "relu"), samples(2, (4,))
    with torch.no_grad():
        assert not analytic_ntk(net, x).requires_grad
    assert not analytic_ntk(net, x.detach()).requires_grad
    assert analytic_ntk(net, x).requires_grad
    assert analytic_ntk(net, x.detach(), x).requires_grad
    assert all(p.grad is None for p in net.parameters())


def _network(name: str, activation: str, sigma_b: float = 0.2) -> nn.Module:
    kinds = {"relu": nn.ReLU, "erf": Erf, "abs": Abs}
    phi = kinds[activation]
    if name == "mlp":
        options = {"sigma_w": 1.3, "sigma_b": sigma_b}
        return nn.Sequential(
            dense(4, 3, **options), phi(), dense(3, 3, **options), phi(), dense(3, 1, **options)
        )
    options = {"sigma_w": 1.3, "sigma_b": sigma_b, "padding": 1}
    end = [nn.AdaptiveAvgPool2d(1)] if name == "cntk gap" else []
    body = [conv(2, 3, **options), phi(), conv(3, 3, **options), phi(), *end, nn.Flatten()]
    return nn.Sequential(*body, dense(3 if end else 18, 1, 1.0, sigma_b))
