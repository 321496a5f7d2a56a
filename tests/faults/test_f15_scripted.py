"""Functions and modules compiled by TorchScript, whose operations cannot be watched."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from oracle import WAYS, Make, Net, built, check, error, inputs, jacobian, mean, weight
from torch import Tensor, nn

from torch_ntk import empirical_ntk

SCRIPT = "TorchScript|scripted|torch.jit"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is deprecated

    @torch.jit.script
    def mixed(x: Tensor, w: Tensor) -> Tensor:
        return torch.sin(x @ w.t())

    @torch.jit.script
    def gate_and_up(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        h = torch.nn.functional.linear(x, w, b)
        a, c = h.chunk(2, dim=1)
        return torch.sigmoid(a) * c


class Gated(nn.Module):
    """A weight in `F.linear` and, behind a gate, in a scripted function."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.w, self.gate = weight(2, 3), nn.Parameter(torch.full((1,), gate))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.w)) + self.gate * mixed(x, self.w)


MODELS: dict[str, Make] = {
    "gate closed": lambda: Gated(0.0),
    "gate open": lambda: Gated(1.0),
    "alone": lambda: Net(
        lambda net, x: net.head(gate_and_up(x, net.w, net.b)),
        w=weight(6, 3),
        b=weight(6),
        head=nn.Linear(3, 2),
    ),
    "tied": lambda: Net(
        lambda net, x: mixed(torch.tanh(net.a(x)), net.a.weight), a=nn.Linear(3, 3)
    ),
    "derived": lambda: Net(
        lambda net, x: F.linear(x, net.w) + mixed(x, net.w * net.s), w=weight(2, 3), s=weight(2, 3)
    ),
}


def _zero_first() -> Tensor:
    x = inputs(4, 3)
    x[0] = 0.0
    return x


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_function(name: str, way: str) -> None:
    check(way, MODELS[name], _zero_first())


def test_gate_that_opens_later() -> None:
    x, net, twin = inputs(4, 3), built(MODELS["gate closed"]), built(MODELS["gate closed"])
    for gate in (0.0, 1.0, -0.5):
        for model in (net, twin):
            model.gate.data.fill_(gate)
        expected = mean(jacobian(twin, x))
        assert error(empirical_ntk(net, x, output="mean"), expected) < 1e-10, f"gate {gate}"


def test_first_sample_of_zeros() -> None:
    x = _zero_first()
    expected = mean(jacobian(built(MODELS["gate open"]), x))
    assert error(empirical_ntk(built(MODELS["gate open"]), x, output="mean"), expected) < 1e-10


def _scripted_part() -> nn.Module:
    part = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        scripted = torch.jit.script(part)
    return nn.Sequential(scripted, nn.Linear(4, 2))


def _plain_part() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), nn.Linear(4, 2))


@pytest.mark.parametrize("way", WAYS)
def test_submodule(way: str) -> None:
    check(way, _scripted_part, inputs(3, 3), plain=_plain_part, refusal=SCRIPT)


def test_verify() -> None:
    check("verify", MODELS["gate open"], inputs(3, 3))
