"""What a model may return, and what the errors of the other things say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from batch_forms import built, full, loop, off, parts
from torch import Tensor, nn

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, verify


@dataclass
class Result:
    loss: Tensor | None
    scores: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass
class Twice:
    last_hidden_state: Tensor
    pooled: Tensor


class Returning(nn.Module):
    def __init__(self, kind: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 3), nn.Linear(3, 2), kind

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.kind(h, self.b(h))


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "logits beside others": lambda h, f: {"hidden": h, "logits": f},
    "the only tensor": lambda h, f: {"scores": f, "name": "x", "states": (h,)},
    "the only one with samples": lambda h, f: {"loss": f.mean(), "scores": f},
    "the only floating one": lambda h, f: {"classes": f.argmax(1), "scores": f},
    "a dataclass": lambda h, f: Result(None, f, (h,)),
    "a dataclass with a loss": lambda h, f: Result(f.mean(), f),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensor_that_is_meant(kind: str) -> None:
    net, x = built(lambda: Returning(KINDS[kind])), parts(3)[0]
    plain = built(lambda: Returning(lambda h, f: f))
    out, j = loop(plain, list(x.split(1)), lambda net, x: net(x))
    for method in ("structured", "jacobian", "vector_product"):
        assert off(empirical_ntk(net, x, method=method), full(j, j)) < 1e-10  # type: ignore[call-overload]
    assert off(empirical_nngp(net, x), out @ out.T / 2) < 1e-10
    matrix = full(j, j).permute(0, 2, 1, 3).reshape(6, 6)
    assert off(NTKOperator(net, x) @ torch.eye(6).double(), matrix) < 1e-10
    assert verify(net, x).is_right


AMBIGUOUS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "two": (
        lambda h, f: {"hidden": h, "scores": f},
        r"hidden: float64 \[1, 3\], scores: float64 \[1, 2\].*"
        r"forward_fn=lambda model, batch: model\(batch\)\['hidden'\]",
    ),
    "a dataclass of two": (
        lambda h, f: Twice(h, f),
        r"last_hidden_state: float64 \[1, 3\], pooled: .*model\(batch\)\.last_hidden_state",
    ),
    "none": (lambda h, f: {"loss": f.mean()}, r"loss: float64 \[\]"),
    "a tuple": (lambda h, f: (f, h), r"a tuple of length 2.*model\(batch\)\[0\]"),
    "nothing": (lambda h, f: None, r"got None"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
@pytest.mark.parametrize("call", [empirical_ntk, empirical_nngp, NTKOperator, verify])
def test_what_is_ambiguous_is_listed_with_the_remedy(call: Any, kind: str) -> None:
    make, words = AMBIGUOUS[kind]
    net, x = built(lambda: Returning(make)), parts(3)[0]
    with pytest.raises(TypeError, match=r"`model` must be a function that returns one") as raised:
        call(net, x)
    assert re.search(words, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    ("batch", "words"),
    [(lambda x: {"x": x}, r"model\(\*\*batch\)\["), (lambda x: (x,), r"model\(\*batch\)\[")],
)
def test_the_remedy_calls_the_model_as_it_is_called(batch: Any, words: str) -> None:
    net, x = built(lambda: Returning(lambda h, f: {"hidden": h, "scores": f})), parts(3)[0]
    with pytest.raises(TypeError, match=words):
        empirical_ntk(net, batch(x))
