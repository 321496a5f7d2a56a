"""A profile shows what the stages of a kernel take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from torch_ntk import empirical_ntk


def _ranges(profiler: Any) -> dict[str, Any]:
    found = {e.key: e for e in profiler.key_averages() if e.key.startswith("torch_ntk::")}
    return {k.removeprefix("torch_ntk::"): e for k, e in found.items()}


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("structured", {"inspect", "backward", "jacobian", "products", "check"}),
        ("jacobian", {"inspect", "jacobian", "products", "check"}),
    ],
)
@pytest.mark.parametrize("both", [True, False])
def test_stages_are_ranges_of_a_profile(method: Any, stages: set[str], both: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 16, 2))
    x = torch.randn(9, 3, 6, 6)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        empirical_ntk(net, x, x[:2] if both else None, method=method)
    ranges = _ranges(profiler)
    assert set(ranges) == stages
    assert all(e.cpu_time_total > 0 for e in ranges.values())


def test_stages_of_a_repeated_call_are_ranges_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 16, 2))
    x = torch.randn(9, 3, 6, 6)
    profiles = []
    for _ in range(5):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            empirical_ntk(net, x)
        profiles.append(_ranges(profiler))
    first, repeated = profiles[1], profiles[4]
    assert set(repeated) == {"backward", "jacobian", "products", "check"}
    assert all(repeated[k].count == first[k].count for k in repeated)
    assert repeated["backward"].cpu_time_total > repeated["backward"].self_cpu_time_total


def test_the_multiplications_of_the_backward_passes_are_in_their_range() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(4, 6)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        empirical_ntk(net, x)

    def stage_of(event: Any) -> str | None:
        while event is not None and not event.name.startswith("torch_ntk::"):
            event = event.cpu_parent
        return None if event is None else event.name

    where = [stage_of(e) for e in profiler.events() if e.name in ("aten::mm", "aten::addmm")]
    assert "torch_ntk::backward" in where
    assert None not in where


def test_a_range_ends_with_an_exception() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=0))  # samples are coupled
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with pytest.raises(ValueError, match="one sample at a time"):
            empirical_ntk(net, torch.randn(3, 4))
        torch.ones(3).cumsum(0)
    (last,) = [e for e in profiler.events() if e.name == "aten::cumsum"]
    assert last.cpu_parent is None
