"""Embeddings whose gradients are sparse: the kernel is dense and the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import NO_FORWARD_MODE, WAYS, Make, Net, check, weight
from torch import nn

TOKENS = torch.tensor([[1, 2, 2], [4, 0, 1], [3, 3, 3]])


def _tied() -> Net:
    return Net(
        lambda net, x: F.linear(torch.tanh(net.a(net.e(x).mean(1))), net.e.weight),
        e=nn.Embedding(6, 4, sparse=True),
        a=nn.Linear(4, 4),
    )


MODELS: dict[str, Make] = {
    "embedding": lambda: nn.Sequential(
        nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2)
    ),
    "alone": lambda: nn.Embedding(6, 2, sparse=True),
    "padding": lambda: nn.Sequential(
        nn.Embedding(6, 4, padding_idx=2, sparse=True), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    ),
    "function": lambda: Net(
        lambda net, x: net.head(F.embedding(x, net.w, sparse=True).sum(1)),
        w=weight(6, 4),
        head=nn.Linear(4, 2),
    ),
    "tied": _tied,
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(6, 4, mode="sum", sparse=True), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_value(name: str, way: str) -> None:
    bag = name == "bag" and way == "vector_product"
    check(way, MODELS[name], TOKENS, refusal=NO_FORWARD_MODE if bag else "")


@pytest.mark.parametrize("name", ["padding"])
def test_verify(name: str) -> None:
    check("verify", MODELS[name], TOKENS)
