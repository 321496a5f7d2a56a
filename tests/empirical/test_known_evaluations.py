"""What changes from call to call is noticed, however often a model was called before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk import empirical_ntk


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))


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


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_a_second_evaluation_that_writes_does_so_to_a_copy(method: str) -> None:
    class Later(nn.Module):
        """Writes to its weight from its second evaluation on."""

        def __init__(self) -> None:
            super().__init__()
            self.last, self.calls, self.writes = nn.Linear(3, 2), 0, False

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.writes and self.calls > 1:
                with torch.no_grad():
                    self.last.weight.mul_(2.0)
            return torch.tanh(self.last(x))

    model, x = Later(), torch.randn(4, 3)
    empirical_ntk(model, x, method=method)
    model.writes, before = True, model.last.weight.detach().clone()
    with pytest.raises(ValueError, match="deterministic"):
        empirical_ntk(model, x, method=method)
    assert torch.equal(model.last.weight, before)


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
