"""Networks that are put together from drawn operations and weights.

Weights may be shared with other operations or computed from other parameters. Everything follows
from one seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Weight = Callable[[nn.Module], Tensor]
Step = Callable[[nn.Module, Tensor], Tensor]
Make = Callable[["Builder", Shape], tuple[Step, Shape]]
Table = dict[str, Make]


class Chain(nn.Module):
    """The network: its steps are functions of itself, so that copies use their own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.words: list[str] = []
        self.cache: dict[str, Tensor] = {}
        self.register_buffer("gate", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x

    def extra_repr(self) -> str:
        return " → ".join(self.words)


class Builder:
    """Draws operations and weights for a network.

    Args:
        seed: What everything follows from.
        plain: Leave out what must not change the value: caches, checkpointing, hooks, compilation.
        tables: The operations for samples of so many axes.
        to_rows: The operations that make one row of a sample.
    """

    def __init__(self, seed: int, plain: bool, tables: dict[int, Table], to_rows: Table) -> None:
        self.tables, self.to_rows = tables, to_rows
        self.draw, self.plain, self.net = random.Random(seed), plain, Chain()
        self.weights: list[tuple[str, Shape]] = []
        self.count, self.couples = 0, False

    def width(self) -> int:
        return self.draw.choice([3, 4, 4, 5, 6])

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def module(self, module: nn.Module) -> Step:
        """A submodule, and the step that calls it."""
        name = self.name("m")
        setattr(self.net, name, module)
        return lambda net, x: getattr(net, name)(x)

    def fresh(self, *shape: int) -> Weight:
        name = self.name("w")
        scale = 1.0 if len(shape) < 2 else (shape[-1] ** -0.5)
        setattr(self.net, name, nn.Parameter(scale * torch.randn(shape)))
        self.weights.append((name, shape))
        return lambda net: getattr(net, name)

    def weight(self, *shape: int) -> Weight:
        """A parameter, one that is there already, or something computed from parameters."""
        alike = [n for n, s in self.weights if s == shape]
        turned = [n for n, s in self.weights if len(s) == 2 and s[::-1] == shape]
        kind = self.draw.choice(DERIVED)
        if self.draw.random() < 0.55:
            kind = "fresh"
        if alike and self.draw.random() < 0.4:
            kind, name = "tied", self.draw.choice(alike)
        elif turned and self.draw.random() < 0.4:
            kind, name = "transposed", self.draw.choice(turned)
        if kind != "fresh":
            self.net.words.append(f"<{kind}>")
        if kind == "tied":
            return lambda net: getattr(net, name)
        if kind == "transposed":
            return lambda net: getattr(net, name).t()
        w = self.fresh(*shape)
        if kind == "product":
            v = self.fresh(*shape)
            return lambda net: w(net) * v(net)
        if kind == "low rank" and len(shape) == 2:
            u, v = self.fresh(shape[0], 2), self.fresh(2, shape[1])
            return lambda net: w(net) + u(net) @ v(net)
        if kind == "gated":
            g = self.fresh(1)
            return lambda net: torch.tanh(g(net)) * w(net)
        if kind == "normalized":
            return lambda net: w(net) / (1e-3 + w(net).square().sum()).sqrt()
        if kind == "slice":
            v = self.fresh(shape[0] + 1, *shape[1:])
            return lambda net: w(net) + v(net)[1:]
        if kind == "row":
            v = self.fresh(*shape[-1:])
            return lambda net: w(net) + v(net).expand(shape)
        if kind == "reshaped":
            v = self.fresh(*shape[::-1])
            return lambda net: w(net) + v(net).reshape(shape)
        if kind == "stopped":
            return lambda net: 2 * w(net) - w(net).detach()
        if kind == "cached" and not self.plain:
            return lambda net: _cached(net, str(id(w)), lambda: 2 * w(net))
        return (lambda net: 2 * w(net)) if kind == "cached" else w

    def step(self, shape: Shape, preserve: bool = False) -> tuple[Step, Shape]:
        """An operation from the table for samples of this shape."""
        table = self.tables[len(shape)]
        while True:
            name = self.draw.choice(list(table))
            before = len(self.net.words)
            made = table[name](self, shape)
            self.net.words.insert(before, f"{name}{list(shape)}")
            if made[1] == shape or not preserve:
                return made

    def build(self, first: Step | None, shape: Shape) -> Chain:
        steps = [] if first is None else [first]
        for _ in range(self.draw.choice([1, 2, 2, 3, 4])):
            f, shape = self.step(shape)
            steps.append(f)
        if len(shape) > 1:
            name = self.draw.choice(list(self.to_rows))
            self.net.words.append(name)
            f, shape = self.to_rows[name](self, shape)
            steps.append(f)
        if self.draw.random() < 0.7 or shape[0] > 8:
            o, kind = self.draw.choice([1, 2, 3, 4]), self.draw.choice(["layer", "weight"])
            if kind == "layer":
                steps.append(self.module(nn.Linear(shape[0], o)))
            else:
                w = self.weight(o, shape[0])
                steps.append(lambda net, x: x @ w(net).t())
            self.net.words.append(f"{kind}[{o}]")
        self.net.steps = steps
        return self.net


def _cached(net: Chain, key: str, compute: Callable[[], Tensor]) -> Tensor:
    if net.training:
        return compute()
    if key not in net.cache:
        net.cache[key] = compute()
    return net.cache[key]


DERIVED = [
    "product",
    "low rank",
    "gated",
    "normalized",
    "slice",
    "row",
    "reshaped",
    "stopped",
    "cached",
]
