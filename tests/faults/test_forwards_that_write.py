"""Forwards that write to their parameters: the caller's are bit for bit as before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest
import torch
from oracle import Net, built, inputs
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import (
    NTKOperator,
    empirical_nngp,
    empirical_ntk,
    explain,
    linearize,
    verify,
)

X = inputs(4, 3)
CALLS: dict[str, Callable[[nn.Module], object]] = {
    "auto": lambda net: empirical_ntk(net, X, batch_size=2),
    "structured": lambda net: empirical_ntk(net, X, method="structured"),
    "jacobian": lambda net: empirical_ntk(net, X, method="jacobian", batch_size=1),
    "vector_product": lambda net: empirical_ntk(net, X, method="vector_product"),
    "operator": lambda net: NTKOperator(net, X) @ torch.ones(8, dtype=X.dtype),
    "nngp": lambda net: empirical_nngp(net, X),
    "verify": lambda net: verify(net, X, samples=1),
    "explain": lambda net: explain(net, X),
    "linearize": lambda net: linearize(net)(X),
}


def _in_place(p: Tensor) -> None:
    with torch.no_grad():
        p.clamp_(-0.2, 0.2)


def _through_data(p: Tensor) -> None:
    p.data.clamp_(-0.2, 0.2)


def _new_data(p: Tensor) -> None:
    p.data = p.data.clamp(-0.2, 0.2)


def _by_detach(p: Tensor) -> None:
    p.detach().mul_(0.5)


WRITES = {f.__name__: f for f in (_in_place, _through_data, _new_data, _by_detach)}


def _network(write: Callable[[Tensor], None], first: int, fails: bool) -> nn.Module:
    """It writes from its call number `first` on, and then may fail."""
    calls = itertools.count(1)

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        if next(calls) >= first:
            write(net.a.weight)
            if fails:
                raise RuntimeError("no more")
        return net.b(torch.tanh(net.a(x)))

    return built(lambda: Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("write", WRITES)
def test_parameters_are_as_before(write: str, call: str) -> None:
    for first, fails in ((1, False), (3, True), (8, False)):
        net = _network(WRITES[write], first, fails)
        before = snapshot(net, X)
        # Whether there is a kernel depends on what is written; a failure of the user's own
        # forward may come through as it is.
        with contextlib.suppress(ValueError, RuntimeError):
            CALLS[call](net)
        after = snapshot(net, X)
        changed = [k for k in before if before[k] != after[k]]
        assert not changed, f"from call {first}, fails={fails}: {changed}"


@pytest.mark.parametrize("call", CALLS)
def test_interrupted(call: str) -> None:
    def interrupted(p: Tensor) -> None:
        p.data.zero_()
        raise KeyboardInterrupt

    for first in (1, 7):
        net = _network(interrupted, first, False)
        before = snapshot(net, X)
        with contextlib.suppress(KeyboardInterrupt):
            CALLS[call](net)
        assert snapshot(net, X) == before, f"from call {first}"


def test_buffers_and_tied_parameters() -> None:
    """Writes to buffers, and to a parameter by its other name."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        net.seen.data.add_(1.0)
        net.b.weight.data.clamp_(-0.2, 0.2)
        return net.b(torch.tanh(net.a(x)))

    def make() -> nn.Module:
        net = Net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
        net.b.weight = net.a.weight
        net.register_buffer("seen", torch.zeros(()))
        return net

    calls = {k: v for k, v in CALLS.items() if k != "operator"}
    for name, call in calls.items():
        net = built(make)
        before = snapshot(net, X)
        with contextlib.suppress(ValueError):
            call(net)
        assert snapshot(net, X) == before, name
