"""Networks of operations without a forward-mode rule, linearized by two backward passes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from oracle import Make, Net, built, check, inputs
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from torch_ntk import NTKOperator, linearize


class Cube(torch.autograd.Function):
    """An operation of the user's with a backward pass alone, which can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def _weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 2))


def _packed(net: nn.Module, x: Tensor) -> Tensor:
    sequence = x.reshape(len(x), 3, 2)
    lengths = torch.full((len(x),), 2)
    packed = pack_padded_sequence(sequence, lengths, batch_first=True)
    return net.head(pad_packed_sequence(net.rnn(packed)[0], batch_first=True)[0][:, -1])


def _own_gradient(net: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = torch.tanh(net.a(x)).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


MODELS: dict[str, Make] = {
    "weight_norm": _weight_norm,
    "weight_norm parametrized": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 2)
    ),
    "packed lstm": lambda: Net(_packed, rnn=nn.LSTM(2, 3, batch_first=True), head=nn.Linear(3, 2)),
    "own gradient": lambda: Net(_own_gradient, a=nn.Linear(6, 4)),
    "old function": lambda: Net(
        lambda net, x: net.b(Cube.apply(net.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 2)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_linearize(name: str) -> None:
    check("linearize", MODELS[name], inputs(3, 6), tolerance=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_training_step(name: str) -> None:
    """It can be trained, and saved and loaded, as any other."""
    lin, x = linearize(built(MODELS[name])), inputs(3, 6)
    optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (lin(x) - 1).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    twin = linearize(built(MODELS[name]))
    twin.load_state_dict(lin.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(x), lin(x))


@pytest.mark.parametrize("name", MODELS)
def test_kernels(name: str) -> None:
    for way in ("auto", "jacobian", "operator"):
        check(way, MODELS[name], inputs(3, 6))


def test_operator_of_packed_sequences_is_symmetric() -> None:
    theta = NTKOperator(built(MODELS["packed lstm"]), inputs(3, 6))
    dense = theta @ torch.eye(6, dtype=torch.float64)
    assert torch.allclose(dense, dense.t(), rtol=1e-12, atol=1e-14)
