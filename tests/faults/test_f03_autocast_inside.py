"""Autocast that the forward itself turns on: the value is that without autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import WAYS, Net, built, check, errors, inputs, outputs_and_jacobian
from torch import Tensor, nn


def _block(enabled: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            h = torch.tanh(net.a(x))
            return net.b(h).to(x.dtype)

    return forward


def _decorated(enabled: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    @torch.autocast("cpu", torch.bfloat16, enabled=enabled)
    def hidden(net: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(net.a(x))

    return lambda net, x: net.b(hidden(net, x).to(x.dtype))


def _partly(enabled: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            h = net.a(x)
            with torch.autocast("cpu", enabled=False):  # as losses and norms are guarded
                h = torch.softmax(h.to(x.dtype), dim=1)
            return (h @ net.b.weight.t()).to(x.dtype)

    return forward


def _by_hand(enabled: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        before = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled("cpu", enabled)
        try:
            h = torch.tanh(net.a(x))
        finally:
            torch.set_autocast_enabled("cpu", before)
        return net.b(h.to(x.dtype))

    return forward


FORWARDS = {"block": _block, "decorated": _decorated, "partly": _partly, "by hand": _by_hand}


def _net(forward: Callable[[nn.Module, Tensor], Tensor]) -> Net:
    return Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORWARDS)
def test_value_in_float32(name: str, way: str) -> None:
    """Autocast leaves float64 alone; in float32 it costs three digits."""
    x = inputs(3, 4)
    f_0, j = outputs_and_jacobian(built(lambda: _net(FORWARDS[name](False))), x)
    model = built(lambda: _net(FORWARDS[name](True))).float()
    assert errors(way, model, x.float(), j, f_0) < 2e-6


def test_verify() -> None:
    check("verify", lambda: _net(_decorated(True)), inputs(3, 4))
