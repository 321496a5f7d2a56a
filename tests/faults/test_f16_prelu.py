"""PReLU, whose batching rule in torch confuses samples with outputs where there are as many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import WAYS, Make, Net, built, check, error, full, inputs, jacobian, mean
from torch import Tensor, nn

from torch_ntk import empirical_ntk


def _deep() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.PReLU(), nn.Linear(8, 4), nn.Tanh())


def _identity() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.zero_()
    return net


def _pair(net: nn.Module, x: Tensor) -> Tensor:
    h = net.p(x.reshape(-1, 2)).reshape(x.shape)
    return torch.exp(net.g) * torch.tanh(h[:, 0, :1])


MODELS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "deep": (_deep, (4, 3)),
    "per channel": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4)), (4, 3)),
    "images": (lambda: nn.Sequential(nn.PReLU(2), nn.Conv2d(2, 1, 2), nn.Flatten()), (4, 2, 3, 3)),
    "function": (
        lambda: Net(lambda net, x: F.prelu(net.a(x), net.s.exp()), a=nn.Linear(3, 4), s=_slope()),
        (4, 3),
    ),
    "twice": (
        lambda: Net(lambda net, x: net.p(net.a(net.p(x))), a=nn.Linear(4, 4), p=nn.PReLU()),
        (4, 4),
    ),
    "folded rows": (lambda: Net(_pair, g=nn.Parameter(torch.ones(1)), p=nn.PReLU(2)), (2, 2, 2)),
    "one output": (lambda: nn.Sequential(nn.Linear(3, 1), nn.PReLU()), (1, 3)),
}


def _slope() -> nn.Parameter:
    return nn.Parameter(torch.full((4,), -1.0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_as_many_outputs_as_samples(name: str, way: str) -> None:
    make, shape = MODELS[name]
    check(way, make, inputs(*shape))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("last", [True, False], ids=["last", "all but the last"])
def test_where_the_slope_does_not_show(last: bool, way: str) -> None:
    """Some samples have no negative input, so that nothing of the slope shows in them."""
    x = inputs(2, 2)
    x[1 if last else 0] = x[1 if last else 0].abs()
    check(way, _identity, x)


@pytest.mark.parametrize("method", ["auto", "structured", "jacobian", "vector_product"])
@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_blocks(method: str, batch_size: int | None) -> None:
    x = inputs(8, 2)
    x[1::2] = x[1::2].abs()
    expected = full(jacobian(built(_identity), x))
    found = empirical_ntk(built(_identity), x, method=method, batch_size=batch_size)  # type: ignore
    assert error(found, expected) < 1e-10


@pytest.mark.parametrize("method", ["auto", "jacobian"])
def test_equal_samples_first(method: str) -> None:
    """What a call with equal samples has shown says nothing about others."""
    net, x = built(_deep), inputs(4, 3)
    same = x[:1].repeat(4, 1)
    j, j_same = jacobian(built(_deep), x), jacobian(built(_deep), same)
    for a, b, expected in ((same, same, mean(j_same)), (x, x, mean(j)), (same, x, mean(j_same, j))):
        found = empirical_ntk(net, a, b, output="mean", method=method)  # type: ignore[arg-type]
        assert error(found, expected) < 1e-10


def test_small_shapes_in_float32() -> None:
    """Neither a crash nor a wrong shape, whatever the samples."""
    for seed in range(12):
        x = inputs(2, 2, 2, seed=seed)
        expected = full(jacobian(built(MODELS["folded rows"][0]), x))
        found = empirical_ntk(built(MODELS["folded rows"][0]).float(), x.float())
        assert error(found, expected) < 1e-5, f"seed {seed}"


def test_verify() -> None:
    check("verify", _deep, inputs(4, 3))
