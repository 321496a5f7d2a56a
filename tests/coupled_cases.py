"""Batches that are one input, and the Jacobian of every row by plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Graph(nn.Module):
    """Two convolutions by hand: each node sums its neighbours by an index of edges `[2, E]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self._sum(self.second(torch.tanh(self._sum(self.first(x), edges))), edges)

    def _sum(self, h: Tensor, edges: Tensor) -> Tensor:
        return h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])


class InSet(nn.Module):
    """The elements of a set look at its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([x, x.mean(0).expand_as(x)], dim=1)))


def normalized() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    )


def without_statistics() -> nn.Module:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2))


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 0, 4, 3, 4]])
FEWER = torch.tensor([[0, 2, 1], [1, 0, 2]])
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, bool]] = {
    "graph": (
        Graph,
        {"x": normal(5, 3), "edges": EDGES},
        {"x": normal(3, 3, seed=1), "edges": FEWER},
        False,
    ),
    "set": (InSet, normal(4, 3), normal(2, 3, seed=1), False),
    "batch norm": (normalized, normal(6, 2, 5, 5), normal(4, 2, 5, 5, seed=1), True),
    "no statistics": (without_statistics, normal(4, 3), None, False),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    net = CASES[name][0]().double()
    return net.train(CASES[name][3])


def call(net: nn.Module, x: Any) -> Tensor:
    out: Tensor = net(**x) if isinstance(x, dict) else net(x)
    return out


def jacobian(name: str, x: Any) -> Tensor:
    """`[N, O, P]` by one backward pass of the whole batch for each row and output."""
    net = made(name)
    out = call(net, x)
    params = list(net.parameters())
    rows = [torch.autograd.grad(f, params, retain_graph=True) for f in out.flatten()]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return flat.view(*out.shape, -1)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()
