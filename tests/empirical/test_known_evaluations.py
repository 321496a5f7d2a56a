"""A model is evaluated twice for what changes from call to call, however often it is called."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import relative_error
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk.empirical import _trial


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of each evaluation that is made only to find something out."""
    made: list[int] = []
    real = _trial._forward
    monkeypatch.setattr(
        _trial, "_forward", lambda fn, n, x: (made.append(len(x)), real(fn, n, x))[1]
    )
    return made


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ({}, 1),
        ({"output": "trace"}, 1),
        ({"max_memory": 10**6}, 1),
        ({"method": "structured", "x2": 2}, 1),
        ({"method": "jacobian"}, 2),
        ({"method": "vector_product"}, 2),
        ({"output": "pseudo"}, 2),
    ],
)
def test_a_known_model_is_evaluated_twice_all_the_same(
    passes: list[int], options: dict, evaluations: int
) -> None:
    model, x = _net().double(), torch.randn(4, 3, dtype=torch.float64)
    options = {**options, **({"x2": x[:2] + 1} if "x2" in options else {})}
    empirical_ntk(model, x, **options)
    assert passes[:2] == [1, 1]
    passes.clear()
    kernel = empirical_ntk(model, x, **options)
    assert passes == [1] * evaluations  # the other one is part of the computation
    expected = empirical_ntk(copy.deepcopy(model), x, **options)
    assert relative_error(kernel, expected) < 1e-12


@pytest.mark.parametrize("method", ["structured", "jacobian", "vector_product"])
def test_noise_is_noticed_after_a_call_without(method: str) -> None:
    model, x = _net().double(), torch.randn(4, 3, dtype=torch.float64)
    empirical_ntk(model, x, method=method)
    generator = np.random.default_rng(0)
    model[2].register_forward_hook(lambda m, i, out: out * generator.uniform(0.5, 1.5, (1,))[0])
    for _ in range(3):
        with pytest.raises(ValueError, match="deterministic"):
            empirical_ntk(model, x, method=method)


def test_noise_without_an_operation_is_noticed_after_a_call_without() -> None:
    class Counting(nn.Module):
        """Adds a buffer, which is of the same shape whatever stands in it."""

        def __init__(self) -> None:
            super().__init__()
            self.last, self.calls, self.counts = nn.Linear(3, 2), torch.zeros(2), False

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + (1.0 if self.counts else 0.0)
            return torch.tanh(self.last(x)) * (1 + self.calls)

    model, x = Counting(), torch.randn(4, 3)
    empirical_ntk(model, x)
    model.counts = True
    with pytest.raises(ValueError, match="deterministic"):
        empirical_ntk(model, x)


def test_another_way_to_a_parameter_is_noticed_after_a_call_without() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
            self.kept: list[Tensor] = [self.first.weight]
            self.way = [torch.ones(3, 3)]

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)) + F.linear(x, self.way[0]))

    model, x = Listed(), torch.randn(4, 3)
    empirical_ntk(model, x)
    model.way = model.kept
    with pytest.raises(ValueError, match="another reference"):
        empirical_ntk(model, x)
