"""Forwards that differentiate by their inputs or by their parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import NO_FORWARD_MODE, WAYS, Make, Net, built, check, error, inputs
from torch import Tensor, nn
from torch.func import functional_call

from torch_ntk import empirical_nngp
from torch_ntk.forecasting import outputs_of


def _potential() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1))


def _forces(net: nn.Module, x: Tensor) -> Tensor:
    """-∂E/∂x of inputs that the caller must have marked."""
    return -torch.autograd.grad(net.energy(x).sum(), x, create_graph=True)[0]


def _forces_of_a_copy(net: nn.Module, x: Tensor) -> Tensor:
    """As potentials do that mark their inputs by themselves."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return -torch.autograd.grad(net.energy(x).sum(), x, create_graph=True)[0]


def _marked_in_place(net: nn.Module, x: Tensor) -> Tensor:
    x.requires_grad_(True)
    e = net.energy(x)
    return torch.cat([e, torch.autograd.grad(e.sum(), x, create_graph=True)[0]], dim=1)


def _inner_step(net: nn.Module, x: Tensor) -> Tensor:
    """MAML: one step of each sample's own on its own features, then the outputs."""
    fast = dict(net.net.named_parameters())
    rows = []
    for row in x.split(1):
        loss = (functional_call(net.net, fast, (row,)) - row.mean()).square().sum()
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        step = {k: p - 0.1 * g for (k, p), g in zip(fast.items(), grads, strict=True)}
        rows.append(functional_call(net.net, step, (row,)))
    return torch.cat(rows)


def _penalty(net: nn.Module, x: Tensor) -> Tensor:
    """Outputs and the norm of their gradient by a parameter, sample by sample."""
    rows = []
    for row in x.split(1):
        e = net.energy(row)
        (g,) = torch.autograd.grad(e.sum(), net.energy[0].weight, create_graph=True)
        rows.append(torch.cat([e, g.square().sum().reshape(1, 1)], dim=1))
    return torch.cat(rows)


MODELS: dict[str, Make] = {
    "forces of a copy": lambda: Net(_forces_of_a_copy, energy=_potential()),
    "marked in place": lambda: Net(_marked_in_place, energy=_potential()),
    "inner step": lambda: Net(_inner_step, net=_potential()),
    "penalty": lambda: Net(_penalty, energy=_potential()),
}


def _refusal(way: str) -> str:
    return NO_FORWARD_MODE if way == "vector_product" else ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_value(name: str, way: str) -> None:
    check(way, MODELS[name], inputs(3, 4), refusal=_refusal(way))


@pytest.mark.parametrize("outputs", [empirical_nngp, outputs_of])
@pytest.mark.parametrize("name", MODELS)
def test_outputs(name: str, outputs: Callable[..., Tensor]) -> None:
    """Where nothing is differentiated but by the forward itself."""
    x = inputs(3, 4)
    f = built(MODELS[name]).eval()(x.clone()).detach().flatten(1)
    found = outputs(built(MODELS[name]), x)
    assert error(found, f if outputs is outputs_of else f @ f.T / f.shape[1]) < 1e-12


def _laplacian(net: nn.Module, x: Tensor) -> Tensor:
    """By torch.func; the last bias has no part in it."""
    energy = lambda row: net.energy(row[None])[0, 0]  # noqa: E731
    return torch.stack([torch.func.hessian(energy)(row).trace() for row in x])


@pytest.mark.parametrize("way", ["auto", "linearize"])
def test_a_parameter_that_derivatives_do_not_depend_on(way: str) -> None:
    check(way, lambda: Net(_laplacian, energy=_potential()), inputs(3, 4))


def test_verify() -> None:
    check("verify", MODELS["inner step"], inputs(3, 4))


@pytest.mark.parametrize("way", WAYS)
def test_inputs_that_the_caller_has_marked(way: str) -> None:
    make = lambda: Net(_forces, energy=_potential())  # noqa: E731
    x = inputs(3, 4).requires_grad_()
    check(way, make, x, refusal=_refusal(way), plain=MODELS["forces of a copy"])
