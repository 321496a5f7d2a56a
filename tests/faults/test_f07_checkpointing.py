"""Activation checkpointing that is called whatever the training flag says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.utils.checkpoint
from oracle import WAYS, Make, Net, check, inputs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

Kind = Literal["reentrant", "hooks", "none"]


def run(kind: Kind, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """A block with checkpointing of one kind, or without."""
    if kind == "none":
        return function(*args)
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=kind == "reentrant")


def _wrapped(net: nn.Module, x: Tensor, kind: Kind) -> Tensor:
    return net.b(run(kind, net.a, x))


def _two_arguments(net: nn.Module, x: Tensor, kind: Kind) -> Tensor:
    h = torch.tanh(net.c(x))
    return run(kind, lambda u, v: net.b(u * v), net.a(x), h)


def _nested(net: nn.Module, x: Tensor, kind: Kind) -> Tensor:
    return net.b(run(kind, lambda v: torch.tanh(run(kind, net.a, v)), x))


def _sequential(net: nn.Module, x: Tensor, kind: Kind) -> Tensor:
    if kind == "none":
        return net.b(net.a(x))
    return net.b(checkpoint_sequential(net.a, 2, x, use_reentrant=kind == "reentrant"))


def _imported(net: nn.Module, x: Tensor, kind: Kind) -> Tensor:
    """The function as imported by name, and inputs tracked as fine-tuning does it."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    if kind == "none":
        return net.b(net.a(x))
    return net.b(checkpoint(net.a, x, use_reentrant=kind == "reentrant"))


FORWARDS = {f.__name__: f for f in (_wrapped, _two_arguments, _nested, _sequential, _imported)}


def _make(name: str, kind: Kind) -> Make:
    return lambda: Net(
        functools.partial(FORWARDS[name], kind=kind),
        a=nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh()),
        b=nn.Linear(5, 3),
        c=nn.Linear(4, 5),
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["reentrant", "hooks"])
@pytest.mark.parametrize("name", FORWARDS)
def test_value(name: str, kind: Kind, way: str) -> None:
    check(way, _make(name, kind), inputs(3, 4), plain=_make(name, "none"))


@pytest.mark.parametrize("kind", ["reentrant", "hooks"])
def test_verify(kind: Kind) -> None:
    check("verify", _make("_nested", kind), inputs(3, 4), plain=_make("_nested", "none"))


def test_it_is_back_afterwards() -> None:
    own = (torch.utils.checkpoint.checkpoint, torch.utils.checkpoint.CheckpointFunction)
    check("auto", _make("_wrapped", "hooks"), inputs(2, 4))
    assert own == (torch.utils.checkpoint.checkpoint, torch.utils.checkpoint.CheckpointFunction)
