"""Patterns of names in `params=`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_ntk import empirical_ntk, explain


def blocks() -> nn.Module:
    body = nn.Sequential(*(nn.Linear(3, 3) for _ in range(11)))
    return nn.ModuleDict({"layers": body, "head": nn.Linear(3, 2)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = blocks()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts["head"](self.parts["layers"](x))


EVERY = [n for n, _ in Net().named_parameters()]
PATTERNS: dict[str, tuple[list[str], list[str]]] = {
    "a layer, and not those that begin alike": (
        ["parts.layers.1.*"],
        ["parts.layers.1.weight", "parts.layers.1.bias"],
    ),
    "all biases": (["*.bias"], [n for n in EVERY if n.endswith(".bias")]),
    "one character": (
        ["parts.layers.?.weight"],
        [f"parts.layers.{k}.weight" for k in range(10)],
    ),
    "characters of a set": (
        ["parts.layers.[02].bias"],
        ["parts.layers.0.bias", "parts.layers.2.bias"],
    ),
    "patterns that overlap": (
        ["parts.head.*", "*head*", "parts.head.bias"],
        ["parts.head.weight", "parts.head.bias"],
    ),
    "everything": (["*"], EVERY),
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_what_they_select(kind: str) -> None:
    patterns, names = PATTERNS[kind]
    net, x = Net().double(), torch.randn(3, 3, dtype=torch.float64)
    chosen = [line.parameter for line in explain(net, x, params=patterns).lines]
    assert sorted(chosen) == sorted(names)
    found = empirical_ntk(net, x, params=patterns)
    assert torch.allclose(found, empirical_ntk(net, x, params=names), rtol=1e-12)


def test_patterns_of_compiled_modules_are_those_of_their_names() -> None:
    net, x = Net(), torch.randn(3, 3)
    net.parts["head"] = torch.compile(net.parts["head"])
    chosen = [line.parameter for line in explain(net, x, params=["parts.head.*"]).lines]
    assert chosen == ["parts.head.weight", "parts.head.bias"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (["parts.layer.1.weight"], r"'parts.layer.1.weight'\. Near to it are .*layers.1.weight'"),
        (["layers.1.*"], r"'layers.1.\*'\. Near to it are 'parts\.layers\.1"),
        (["PARTS.*"], r"patterns that match some; got 'PARTS\.\*'"),
        (["*.bias", "zzz"], r"got 'zzz'\. The names are"),
    ],
)
def test_what_matches_nothing_is_told_with_near_names(params: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"`params` must be names.*" + words):
        empirical_ntk(Net(), torch.randn(2, 3), params=params)
