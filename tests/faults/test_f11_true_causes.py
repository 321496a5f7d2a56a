"""Refusals name the true cause and a remedy that works, where there is no value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import (
    WAYS,
    Make,
    Net,
    built,
    check,
    error,
    full,
    inputs,
    jacobian,
    said,
    weight,
)
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, verify

X = inputs(3, 4)
CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "empirical_ntk": empirical_ntk,
    "empirical_nngp": empirical_nngp,
    "NTKOperator": lambda net, x: NTKOperator(net, x) @ torch.eye(6, dtype=torch.float64),
    "verify": verify,
}


def told(call: Callable[[], object], cause: str, misleading: str) -> str:
    """The refusal, if there was one: it must name the cause, and say nothing beside the point."""
    message = said(call)
    if message:
        assert re.search(cause, message, re.IGNORECASE | re.DOTALL), message
        assert not re.search(misleading, message, re.IGNORECASE), message
    return message


class OfMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return torch.tanh(self.a(features)) * scale


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["mapping", "tuple", "list"])
def test_batches_that_are_no_tensor(kind: str, call: str) -> None:
    scale = inputs(3, 1, seed=1)
    batch = {"mapping": {"features": X, "scale": scale}, "tuple": (X, scale), "list": [X, scale]}
    found = CALLS[call](built(OfMapping), batch[kind])
    if call == "empirical_ntk":
        joint = Net(lambda net, x: net.m(x[:, :4], x[:, 4:]), m=built(OfMapping))
        assert error(found, full(jacobian(joint, torch.cat([X, scale], dim=1)))) < 1e-10


MIXING = torch.softmax(inputs(3, 3, seed=5), dim=1)
ONE_AT_A_TIME: dict[str, Make] = {
    "graph": lambda: Net(lambda net, x: MIXING @ net.a(x), a=nn.Linear(4, 2)),
    "fixed batch size": lambda: Net(lambda net, x: net.a(x.view(3, 4)), a=nn.Linear(4, 2)),
    "state of fixed size": lambda: Net(
        lambda net, x: net.a(x, torch.zeros(3, 2, dtype=x.dtype)), a=nn.GRUCell(4, 2)
    ),
    "squeeze": lambda: Net(lambda net, x: net.a(x).squeeze(), a=nn.Linear(4, 2)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_samples_are_also_evaluated_one_at_a_time(name: str, call: str) -> None:
    found: list[Any] = []
    message = told(
        lambda: found.append(CALLS[call](built(ONE_AT_A_TIME[name]), X)),
        r"one (sample )?at a time|single sample|one sample|sample alone|batch of (one|1)\b",
        "as in training",
    )
    if not message:
        assert name in ("squeeze", "state of fixed size"), "coupled samples have no kernel"
        if call == "empirical_ntk":
            plain = Net(lambda net, x: net.a(x), a=nn.Linear(4, 2))
            plain.a = built(ONE_AT_A_TIME[name]).a
            if name == "squeeze":
                assert error(found[0], full(jacobian(plain, X))) < 1e-10


def _stateful(net: nn.Module, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 3) if net.h is None or len(net.h) != len(x) else net.h
    h = net.cell(x, h)
    net.h = h.detach()
    return net.head(h)


def _without_state(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(net.cell(x, x.new_zeros(len(x), 3)))


def _recurrent(forward: Callable[[nn.Module, Tensor], Tensor]) -> Make:
    return lambda: Net(forward, cell=nn.GRUCell(4, 3), head=nn.Linear(3, 2), h=None)


@pytest.mark.parametrize("way", WAYS)
def test_recurrent_network_that_keeps_its_state(way: str) -> None:
    """Its state is put back before each evaluation, or it is named; dropout it has none."""
    check(
        way,
        _recurrent(_stateful),
        X,
        plain=_recurrent(_without_state),
        refusal=r"^(?!.*dropout).*(state|keeps|remember|attribute|call)",
    )


def _quantized() -> nn.Module:
    fake = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    net = nn.Sequential(nn.Linear(4, 4), fake, nn.Linear(4, 2))
    net(torch.randn(8, 4))
    return net


def test_quantization_aware_training() -> None:
    """Its observers couple the samples, or move from call to call."""
    told(
        lambda: empirical_ntk(built(_quantized), X),
        "quanti|observer|state|buffer",
        "batch normalization|dropout",
    )


@pytest.mark.parametrize("way", WAYS)
def test_marks_for_missing_values(way: str) -> None:
    x = inputs(3, 4)
    x[0, 1] = x[2, 3] = float("nan")
    check(
        way,
        lambda: Net(
            lambda net, x: net.a(torch.where(x.isnan(), net.missing, x.nan_to_num())),
            a=nn.Linear(4, 2),
            missing=weight(4),
        ),
        x,
    )


def test_marks_that_reach_the_outputs_are_refused() -> None:
    x = inputs(3, 4)
    x[0, 1] = float("nan")
    assert "nan" in said(lambda: empirical_ntk(built(lambda: nn.Linear(4, 2)), x)).lower()
