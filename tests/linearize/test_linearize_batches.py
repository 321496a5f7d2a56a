"""Linearized and expanded networks on batches of any form, and of chosen outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from torch_ntk import linearize, taylor_expand


class Packing(nn.Module):
    """A recurrent network of padded sequences, whose last states depend on their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.cell(packed)[1][-1])


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


class Graph(nn.Module):
    """Node features and an adjacency matrix by name; options that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, nodes: Tensor, adjacency: Tensor, *, power: int = 1) -> Output:
        h = torch.tanh(self.a(adjacency @ nodes))
        return Output(self.b(adjacency @ h) ** power, h)


class OfMapping(Graph):
    """One positional argument, which is a mapping."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        out = super().forward(batch["nodes"], batch["adjacency"])
        return {"only": out.logits}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


SEQUENCES = (drawn(4, 5, 3), torch.tensor([5, 2, 4, 1]))
GRAPHS = {"nodes": drawn(3, 4, 3), "adjacency": drawn(3, 4, 4, seed=1)}
LABELS = torch.tensor([1, 0, 0, 1])

Call = Callable[[Any], Any]
CASES: dict[str, tuple[Callable[[], nn.Module], Call, Any, Callable[[nn.Module], Tensor]]] = {
    "two tensors": (Packing, lambda f: f(*SEQUENCES), None, lambda net: net(*SEQUENCES)),
    "one of them by name": (
        Packing,
        lambda f: f(SEQUENCES[0], lengths=SEQUENCES[1]),
        None,
        lambda net: net(*SEQUENCES),
    ),
    "a dictionary, a dataclass": (
        Graph,
        lambda f: f(**GRAPHS, power=2),
        None,
        lambda net: net(**GRAPHS, power=2).logits,
    ),
    "one mapping": (OfMapping, lambda f: f(GRAPHS), None, lambda net: net(GRAPHS)["only"]),
    "another output": (
        Graph,
        lambda f: f(**GRAPHS),
        lambda net, batch: net(**batch).hidden,
        lambda net: net(**GRAPHS).hidden,
    ),
    "losses": (
        Packing,
        lambda f: f(*SEQUENCES, LABELS),
        lambda net, b: nn.functional.cross_entropy(net(*b[:2]), b[2], reduction="none"),
        lambda net: nn.functional.cross_entropy(net(*SEQUENCES), LABELS, reduction="none"),
    ),
}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().double()


def moved(model: nn.Module) -> list[Tensor]:
    """Moves every parameter, and returns by how much."""
    deltas = [0.3 * drawn(*p.shape, seed=7 + i) for i, p in enumerate(model.parameters())]
    with torch.no_grad():
        for p, d in zip(model.parameters(), deltas, strict=True):
            p += d
    return deltas


def slopes(f: Tensor, net: nn.Module, deltas: list[Tensor]) -> Tensor:
    """J δ, entry by entry of f, by one backward pass each of the user's own network."""
    rows = []
    for entry in f.flatten():
        found = torch.autograd.grad(
            entry, list(net.parameters()), retain_graph=True, allow_unused=True
        )
        pairs = zip(found, deltas, strict=True)
        rows.append(torch.stack([(g * d).sum() for g, d in pairs if g is not None]).sum())
    return torch.stack(rows).reshape(f.shape)


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    make, call, forward_fn, oracle = CASES[name]
    net = built(make)
    lin = linearize(net, forward_fn=forward_fn)
    f_0 = oracle(net)
    assert torch.equal(call(lin), f_0)
    expected = f_0 + slopes(f_0, net, moved(lin))
    assert (call(lin) - expected).abs().max() < 1e-12
    with torch.no_grad():
        assert (call(lin) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["a dictionary, a dataclass", "one mapping", "another output"])
def test_second_order(name: str) -> None:
    make, call, forward_fn, oracle = CASES[name]
    net = built(make)
    taylor = taylor_expand(net, 2, forward_fn=forward_fn)
    deltas = moved(taylor)
    f_0 = oracle(net)
    expected = f_0 + slopes(f_0, net, deltas)
    h = 1e-4
    ends = []
    for t in (-h, h):
        at = copy.deepcopy(net)
        with torch.no_grad():
            for p, d in zip(at.parameters(), deltas, strict=True):
                p += t * d
        ends.append(slopes(oracle(at), at, deltas))
    expected = expected + (ends[1] - ends[0]) / (2 * h) / 2
    assert (call(taylor) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_at_the_start(name: str) -> None:
    make, call, forward_fn, oracle = CASES[name]
    net = built(make)
    lin = linearize(net, forward_fn=forward_fn)
    moved(lin)
    out = call(lin)
    u = drawn(*out.shape, seed=5)
    names = [n for n, _ in lin.named_parameters()]
    found = torch.autograd.grad(out, list(lin.parameters()), u, allow_unused=True)
    expected = torch.autograd.grad(oracle(net), list(net.parameters()), u, allow_unused=True)
    for n, a, b in zip(names, found, expected, strict=True):
        assert a is None or b is not None or not a.any(), n
        if b is not None:
            assert (a - b).abs().max() < 1e-12 * max(1.0, float(b.abs().max())), n


def test_gradients_by_some_inputs() -> None:
    net = built(Graph)
    lin = linearize(net)
    nodes = GRAPHS["nodes"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lin(x, GRAPHS["adjacency"]), (nodes,))


def test_inputs_without_an_axis_of_samples() -> None:
    """A linearized network is called like the network, which may take one graph of any size."""
    net = built(Graph)
    lin = linearize(net)
    nodes, adjacency = drawn(4, 3), drawn(1, 4, 4)
    f_0 = net(nodes, adjacency).logits
    expected = f_0 + slopes(f_0, net, moved(lin))
    assert (lin(nodes, adjacency) - expected).abs().max() < 1e-12


def test_autocast_rounds_no_part_of_a_batch() -> None:
    net = built(Graph).float()
    nodes, adjacency = GRAPHS["nodes"].float(), GRAPHS["adjacency"].float()
    lin = linearize(net)
    expected = lin(nodes.bfloat16().float(), adjacency)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lin(nodes.bfloat16(), adjacency), expected)


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="`forward_fn` must be a function"):
        linearize(built(Graph), forward_fn="logits")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor, or a mapping"):
        linearize(built(Graph))(nodes=[1.0], adjacency=None)
    with pytest.raises(TypeError, match="power"):  # as the network says it
        linearize(built(Packing))(*SEQUENCES, power=1)
    other = built(Packing)
    lin = linearize(built(Packing), forward_fn=lambda net, batch: other(*batch) + net(*batch))
    lin(*SEQUENCES)  # a constant beside it is no error
    net = built(Packing)
    with pytest.raises(ValueError, match="through another reference"):
        linearize(net, forward_fn=lambda _, batch: net(*batch))(*SEQUENCES)
