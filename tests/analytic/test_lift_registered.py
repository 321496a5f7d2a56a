"""Activations of a user, whose dual functions `register_dual` made known, in real networks.

What each registers is a closed form that no rule of the package would give it: a module whose
forward `torch.fx` cannot read, so that the kernel can only have come through the registration.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from small_nets import Function, dense
from torch import Tensor, nn, tanh

from torch_ntk import CNTK, analytic_kernels, analytic_ntk, mlp_kernels
from torch_ntk.activations import DualActivation, _lookup, register_dual
from torch_ntk.integrations import RowKernel


def opaque(x: Tensor, omega: float) -> Tensor:
    """sin(ω x), by an operation that no rule reads."""
    return torch.polar(torch.ones_like(x), omega * x).imag


class DualWave(DualActivation):
    """E sin(ωu) sin(ωv) = exp(-ω²(q1 + q2)/2) sinh(ω² k), and its derivative by k."""

    def __init__(self, omega: float) -> None:
        self.omega, self.name = omega, f"wave of {omega}"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return self.pair(q, q, q)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        s = self.omega**2
        damped = torch.exp(-s * (q1 + q2) / 2)
        return damped * torch.sinh(s * k), s * damped * torch.cosh(s * k)


class Wave(nn.Module):
    def __init__(self, omega: float = 1.5) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return opaque(x, self.omega)


class Softer(Wave):
    """A subclass with a registration of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return opaque(x, self.omega / 2)


class Louder(nn.ReLU):
    """A subclass of an activation of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return opaque(x, 2.0)


class Plain(Wave):
    """A subclass without one: it is not what was registered."""


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return opaque(x, float(self.omega))


def wave(x: Tensor, omega: float = 1.5) -> Tensor:
    return opaque(x, omega)


register_dual(Wave, lambda m: DualWave(m.omega))
register_dual(Softer, lambda m: DualWave(m.omega / 2))
register_dual(Louder, lambda m: DualWave(2.0))
register_dual(Trained, lambda m: DualWave(float(m.omega)))
register_dual(wave, lambda f: DualWave(getattr(f, "keywords", {}).get("omega", 1.5)))


class Calls(nn.Module):
    """A function by its global name, and one that the module holds."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.held: Callable[..., Tensor] = wave
        self.bound: Callable[..., Tensor] = functools.partial(wave, omega=0.75)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "global":
            return wave(x)
        if self.how == "keyword":
            return wave(x, omega=0.75)
        if self.how == "position":
            return wave(x, 0.75)
        return self.held(x) if self.how == "held" else self.bound(x)


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "module": (Wave, 1.5),
    "with its setting": (lambda: Wave(0.4), 0.4),
    "subclass": (Softer, 0.75),
    "subclass of torch's": (Louder, 2.0),
    "global function": (lambda: Calls("global"), 1.5),
    "keyword": (lambda: Calls("keyword"), 0.75),
    "position": (lambda: Calls("position"), 0.75),
    "attribute": (lambda: Calls("held"), 1.5),
    "partial": (lambda: Calls("bound"), 0.75),
}


def by_quadrature(x: Tensor, omega: float) -> tuple[Tensor, Tensor]:
    """K and Θ of dense(√2, 0.1), sin(ω·), dense(√2, 0.1) by a plain double integral."""
    nodes = torch.linspace(-9, 9, 361, dtype=torch.float64)
    weights = torch.exp(-nodes.square() / 2) * (nodes[1] - nodes[0]) / math.sqrt(2 * math.pi)
    k = 2 * x @ x.T / x.shape[1] + 0.01
    q = k.diagonal()
    c = k / (q[:, None] * q).sqrt()
    u = q.sqrt()[:, None, None, None] * nodes[:, None]
    mixed = (
        c[..., None, None] * nodes[:, None]
        + (1 - c * c).clamp(min=0).sqrt()[..., None, None] * nodes
    )
    v = q.sqrt()[:, None, None] * mixed
    plane = weights[:, None] * weights
    kappa = (torch.sin(omega * u) * torch.sin(omega * v) * plane).sum((-2, -1))
    slope = (omega**2 * torch.cos(omega * u) * torch.cos(omega * v) * plane).sum((-2, -1))
    nngp = 2 * kappa + 0.01
    return nngp, 2 * k * slope + nngp


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_registered_activation_is_read(name: str) -> None:
    make, omega = ACTIVATIONS[name]
    x = torch.randn(3, 4, dtype=torch.float64)
    net = nn.Sequential(dense(4, 6), make(), dense(6, 2))
    before = {m: dict(vars(m)) for m in net.modules()}
    got, wanted = analytic_kernels(net, x), by_quadrature(x, omega)
    torch.testing.assert_close(got.nngp, wanted[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(got.ntk, wanted[1], rtol=1e-10, atol=0)
    assert {m: dict(vars(m)) for m in net.modules()} == before


def test_functions_of_torch_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has a rule, one that has none, one by its global name; and nothing stays behind."""
    monkeypatch.setattr(_lookup, "_registered", dict(_lookup._registered))
    register_dual(torch.tanh, lambda f: DualWave(1.5))
    register_dual(torch.special.erfcx, lambda f: DualWave(1.5))
    x = torch.randn(3, 4, dtype=torch.float64)
    wrapped = len(torch.fx._symbolic_trace._wrapped_fns_to_patch)
    for function in (torch.tanh, torch.special.erfcx, lambda t: tanh(t), wave):
        net = nn.Sequential(dense(4, 6), Function(function), dense(6, 2))
        torch.testing.assert_close(
            analytic_ntk(net, x), by_quadrature(x, 1.5)[1], rtol=1e-10, atol=0
        )
    assert len(torch.fx._symbolic_trace._wrapped_fns_to_patch) == wrapped
    torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))


def test_wherever_an_activation_is_given() -> None:
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for named in (Wave(), wave):
        torch.testing.assert_close(
            CNTK(3, activation=named)(x), CNTK(3, activation=DualWave(1.5))(x)
        )
        rows = x.flatten(1)
        wanted = mlp_kernels(rows, activation=DualWave(1.5)).ntk
        torch.testing.assert_close(mlp_kernels(rows, activation=named).ntk, wanted)
    net = nn.Sequential(dense(4, 6), Wave(), dense(6, 2))
    assert torch.equal(RowKernel(net)(x[:, 0, 0]), analytic_ntk(net, x[:, 0, 0]))


def test_a_subclass_without_a_registration_is_refused() -> None:
    """It may compute something else than the class that was registered."""
    net = nn.Sequential(dense(4, 6), Plain(), dense(6, 2))
    with pytest.raises(ValueError, match=r"polar.*register_dual"):
        analytic_ntk(net, torch.randn(2, 4))


def test_one_with_a_trained_parameter_is_refused() -> None:
    """Its parameter is a part of the empirical kernel, of which the limit knows nothing."""
    net = nn.Sequential(dense(4, 6), Trained(), dense(6, 2))
    after = nn.Sequential(net[0], nn.Tanh(), *net[1:])  # where it is a part of one activation
    for one in (net, after):
        with pytest.raises(ValueError, match=r"Trained whose omega is trained at"):
            analytic_ntk(one, torch.randn(2, 4))
    frozen = analytic_ntk(nn.Sequential(net[0], net[1].requires_grad_(False), net[2]), torch.eye(4))
    wanted = by_quadrature(torch.eye(4, dtype=torch.float64), 1.5)[1]
    torch.testing.assert_close(frozen, wanted, rtol=1e-10, atol=0)
