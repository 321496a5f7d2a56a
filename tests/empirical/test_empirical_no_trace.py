"""A kernel leaves nothing behind, neither when it succeeds nor when it fails half-way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case, by_name
from torch import nn
from torch.nn.utils import parametrize
from traces import in_training, settings, snapshot

from torch_ntk import empirical_ntk

_CPU = torch.device("cpu")
METHODS = ["structured", "jacobian", "vector_product", "auto"]


@pytest.mark.parametrize("case", [c for c in CASES if not c.options], ids=lambda c: c.name)
@pytest.mark.parametrize("nth", [1, 3])
def test_interruption_leaves_no_trace(case: Case, nth: int) -> None:
    model, x1, x2 = in_training(case), case.inputs(4), case.inputs(3, 1)
    inner = getattr(model, "_orig_mod", model)
    forward, left = inner.forward, Countdown(nth)

    def interrupted(*args: object, **kwargs: object) -> object:
        left.tick()
        return forward(*args, **kwargs)

    inner.forward = interrupted
    before = snapshot(model, x1, x2)
    with pytest.raises(KeyboardInterrupt):
        empirical_ntk(model, x1, x2, method="jacobian", batch_size=1)
    assert snapshot(model, x1, x2) == before


class Countdown:
    """Not in the state of a module: slots are not put back."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def tick(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _low_precision() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "low_precision": _low_precision,
    "deterministic": _deterministic,
    "cached_parametrizations": parametrize.cached,
    "compiler_stance": lambda: torch.compiler.set_stance("eager_on_recompile"),
}


# Every network and every method in every surrounding, though not all three with each other.
NETWORKS = ["mlp", "gru", "spectral_norm_parametrized", "transformer_encoder", "batchnorm2d"]
PLACES = [
    (name, METHODS[(i + k) % len(METHODS)], surrounding)
    for i, name in enumerate(NETWORKS)
    for k, surrounding in enumerate(SURROUNDINGS)
]


@pytest.mark.parametrize(("name", "method", "surrounding"), PLACES)
def test_surroundings_change_nothing_and_stay(name: str, method: str, surrounding: str) -> None:
    case = by_name(name)
    model, x = in_training(case).float(), case.inputs(3).float()
    expected = empirical_ntk(model, x, method=method)
    with SURROUNDINGS[surrounding]():
        if surrounding == "cached_parametrizations":
            model.eval()(x)  # fills the cache
            model.train()
        before = snapshot(model, x)
        kernel = empirical_ntk(model, x, method=method)
        assert snapshot(model, x) == before
    assert torch.equal(kernel, expected)
    assert not kernel.requires_grad
    assert not kernel.is_inference()


@pytest.mark.parametrize("method", METHODS)
def test_made_under_inference_mode(method: str) -> None:
    case = by_name("batchnorm2d")
    expected = empirical_ntk(case.build(), case.inputs(3), method=method)
    with torch.inference_mode():
        model, x = case.build(), case.inputs(3)
    assert x.is_inference()
    assert torch.equal(empirical_ntk(model, x, method=method), expected)
    with torch.inference_mode():
        assert torch.equal(empirical_ntk(model, x, method=method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_require_grad(method: str) -> None:
    case = by_name("mlp")
    x = case.inputs(3).requires_grad_()
    kernel = empirical_ntk(case.build(), x * 1.0, method=method)
    assert not kernel.requires_grad
    assert x.grad is None


def test_training_goes_on_as_if_nothing_had_been() -> None:
    """Two runs of the same seed, one with kernels in between, end bitwise alike."""

    def train(measure: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1)
        )
        optimizer = torch.optim.Adam(model.parameters())
        x = torch.randn(16, 5)
        for _ in range(4):
            if measure:
                empirical_ntk(model, x[:4])
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if measure:
                empirical_ntk(model, x[:4])
            optimizer.step()
        return list(model.state_dict().values())

    for a, b in zip(train(False), train(True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("level", ["everything", "operation"])
def test_a_precision_that_is_inherited_stays_so(level: str) -> None:
    """A reduced precision of float32 products, set for all, goes when that is taken back."""
    backends: Any = torch.backends
    setting = {"everything": backends, "operation": backends.mkldnn.matmul}[level]
    before, own = settings(), setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        during = settings()
        assert during != before
        model, x = by_name("mlp").build(_CPU).float(), by_name("mlp").inputs(3, device=_CPU).float()
        empirical_ntk(model, x)
        assert settings() == during
    finally:
        setting.fp32_precision = own
    assert settings() == before
