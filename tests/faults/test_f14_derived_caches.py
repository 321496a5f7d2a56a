"""Tensors computed from parameters that a module keeps in eval mode."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace

import pytest
import torch
from oracle import WAYS, Make, Net, built, check, error, inputs, jacobian, mean, said, weight
from torch import Tensor, nn

from torch_ntk import empirical_nngp, empirical_ntk, linearize

KEPT = "cache|kept|keeps|computed from it before|stale|another reference|remember"
X = inputs(3, 3)


class Cached(nn.Module):
    """A bias derived from a parameter, as the attention biases of LeViT; subclasses keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bias = nn.Linear(3, 4), weight(4)

    def derived(self) -> Tensor:
        return 2 * self.bias

    def kept(self) -> Tensor:
        return self.derived()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x) + (self.derived() if self.training else self.kept()))


class InDict(Cached):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def kept(self) -> Tensor:
        if "b" not in self.cache:
            self.cache["b"] = self.derived()
        return self.cache["b"]


class InList(Cached):
    def __init__(self) -> None:
        super().__init__()
        self.cache: list[Tensor] = []

    def kept(self) -> Tensor:
        if not self.cache:
            self.cache.append(self.derived())
        return self.cache[-1]


class InAttribute(Cached):
    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def kept(self) -> Tensor:
        if self.cache is None:
            self.cache = self.derived()
        return self.cache


class Nested(Cached):
    """In a dictionary of dictionaries, by the shape of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, dict[int, Tensor]] = {"bias": {}}

    def kept(self) -> Tensor:
        return self.cache["bias"].setdefault(0, self.derived())


class InObject(Cached):
    """In an object that the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.store = SimpleNamespace(b=None)

    def kept(self) -> Tensor:
        if self.store.b is None:
            self.store.b = self.derived()
        return self.store.b


class Outside(Cached):
    """In an object that no attribute of the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = _outside()

    def kept(self) -> Tensor:
        return self.lookup(self)


def _outside() -> object:
    table: dict[str, Tensor] = {}

    def lookup(net: Cached) -> Tensor:
        if "b" not in table:
            table["b"] = net.derived()
        return table["b"]

    return lookup


class InBuffer(Cached):
    """In a buffer that eval mode fills."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None)

    def kept(self) -> Tensor:
        if self.cache is None:
            self.cache = self.derived()
        return self.cache


class Folded(Cached):
    """A product of two parameters, folded for inference in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = weight(4, 2), weight(2, 4)
        self.folded: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return torch.tanh(self.a(x)) @ (self.u @ self.v)
        if self.folded is None:
            self.folded = self.u @ self.v
        return torch.tanh(self.a(x)) @ self.folded


CACHES = (InDict, InList, InAttribute, Nested, InObject, Outside, InBuffer, Folded)
each_cache = pytest.mark.parametrize("kind", CACHES, ids=lambda c: c.__name__)


# `Nested` computes its bias in every call, so that a filled cache cannot be told from one that is
# not used; a buffer with a history has no copy.
FILLED = tuple(kind for kind in CACHES if kind not in (Nested, InBuffer))


class WithoutCache(Folded):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x)) @ (self.u @ self.v)


def _plain(kind: type[Cached]) -> Make:
    """The same function of the same parameters without a cache."""
    return WithoutCache if kind is Folded else Cached


@pytest.mark.parametrize("way", WAYS)
@each_cache
def test_empty_cache(kind: type[Cached], way: str) -> None:
    check(way, kind, X, plain=_plain(kind), refusal=KEPT if kind is Outside else "")


def _evaluated(model: nn.Module, enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        model.eval()(X)
    model.train()


@pytest.mark.parametrize("way", ["auto", "jacobian", "operator"])
@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("kind", FILLED, ids=lambda c: c.__name__)
def test_cache_that_the_user_has_filled(kind: type[Cached], enabled: bool, way: str) -> None:
    """The part of the parameter is not silently 0."""
    before = functools.partial(_evaluated, enabled=enabled)
    check(way, kind, X, plain=_plain(kind), before=before, refusal=KEPT)


@each_cache
def test_a_second_call_after_a_step(kind: type[Cached]) -> None:
    """What one measurement has computed is not used in the next."""
    model, twin = built(kind), built(_plain(kind))
    for k in range(3):
        message_or_value = []
        try:
            message_or_value.append(empirical_ntk(model, X, output="mean"))
        except ValueError:
            assert kind is Outside
            return
        assert error(message_or_value[0], mean(jacobian(twin, X))) < 1e-10, f"call {k}"
        f = twin.eval()(X).detach()
        assert error(empirical_nngp(model, X), f @ f.t() / 4) < 1e-10, f"call {k}"
        with torch.no_grad():
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                p.mul_(1.1)
                q.mul_(1.1)


@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "grad"])
@each_cache
def test_linearize_a_cache_that_the_user_has_filled(kind: type[Cached], enabled: bool) -> None:
    before = functools.partial(_evaluated, enabled=enabled)
    if kind is InBuffer and enabled:  # `check` reads gradients of buffers, which have none then
        model = built(kind)
        _evaluated(model, enabled)
        assert re.search(KEPT, said(lambda: linearize(model)(X)))
        return
    refusal = f"{KEPT}|tensors with a history"  # of those that copy.deepcopy meets by itself
    check("linearize", kind, X, plain=_plain(kind), before=before, refusal=refusal)


def test_verify() -> None:
    for kind in (InDict, InAttribute):
        check("verify", kind, X, plain=_plain(kind))


def test_linearized_network_does_not_fill_the_cache_of_the_original() -> None:
    model = built(InDict)
    lin = linearize(model)
    lin(X)
    assert model.cache == {}
    nested = built(lambda: Net(lambda net, x: net.head(net.m(x)), m=InDict(), head=nn.Linear(4, 2)))
    linearize(nested)(X)
    assert nested.m.cache == {}
