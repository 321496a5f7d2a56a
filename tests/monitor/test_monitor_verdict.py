"""From two numbers to a word."""

from __future__ import annotations

import math

import pytest
import torch

from torch_ntk.monitor import Monitor, verdict


@pytest.mark.parametrize(
    ("drift", "gap", "regime"),
    [
        (0.0, 0.0, "unknown"),
        (0.0, math.nan, "unknown"),
        (math.nan, 0.0, "unknown"),
        (1e-9, 0.0, "lazy"),
        (0.099, 0.099, "lazy"),
        (0.1, 0.0, "in between"),
        (0.0, 0.1, "in between"),
        (0.3, 0.3, "in between"),
        (0.301, 0.0, "feature learning"),
        (0.0, 0.301, "feature learning"),
        (5.0, math.inf, "feature learning"),
        (math.nan, 0.05, "lazy"),
        (0.2, math.nan, "in between"),
        (math.nan, math.nan, "unknown"),
    ],
)
def test_limits(drift: float, gap: float, regime: str) -> None:
    assert verdict({"drift": drift, "linearization_gap": gap}).regime == regime


def test_the_reason_has_the_numbers() -> None:
    text = str(verdict({"drift": 0.123, "linearization_gap": 0.045}))
    assert text.startswith("in between: ")
    assert "12.3%" in text
    assert "4.5%" in text


def test_one_number_alone() -> None:
    assert "outputs" not in verdict({"drift": 0.02}).reason
    assert "kernel" not in verdict({"linearization_gap": 0.02}).reason


def test_nothing_known() -> None:
    assert verdict({}).regime == "unknown"


def test_nothing_has_moved() -> None:
    still = {"drift": 0.0, "linearization_gap": 0.0, "param_drift": 0.0}
    assert "nothing has moved yet" in verdict(still).reason
    # A linear network keeps its kernel while it learns.
    assert verdict({**still, "param_drift": 0.2}).regime == "lazy"


def test_large_numbers_are_factors() -> None:
    reason = verdict({"drift": 11.62, "linearization_gap": 1e40}).reason
    assert "moved by 11.6 times its norm" in reason
    assert "misses 1e+40 times the outputs' movement" in reason
    assert "moved by 999.0% of its norm" in verdict({"drift": 9.99}).reason


def test_moving_buffers_leave_it_undecided() -> None:
    seen = {"drift": 0.5, "linearization_gap": 0.2, "buffer_drift": 0.4}
    result = verdict(seen)
    assert result.regime == "undecided"
    assert "50.0%" in result.reason
    assert "running statistics of normalization moved by 40.0% of their norm" in result.reason
    assert "anchor_at=" in result.meaning
    assert verdict({**seen, "buffer_drift": 0.1}).regime == "feature learning"
    # Already where the parameters alone would be called neither lazy nor feature learning.
    between = {"drift": 0.2, "linearization_gap": 0.2, "buffer_drift": 0.4}
    assert verdict(between).regime == "undecided"
    assert verdict({**between, "buffer_drift": 0.11}).regime == "undecided"
    assert verdict({**between, "buffer_drift": 0.1}).regime == "in between"
    still = {"drift": 0.05, "linearization_gap": 0.02, "buffer_drift": 0.4}
    assert verdict(still).regime == "lazy"  # with the buffers' part it is small still


def test_diverged() -> None:
    result = verdict({"drift": 0.5}, diverged_at=7)
    assert result.regime == "diverged"
    assert "at step 7" in result.reason
    assert "lower the learning rate" in result.reason


@pytest.mark.parametrize(
    ("distance", "gap", "regime"),
    [(0.049, 0.3, "in between"), (0.051, 0.0, "feature learning"), (0.0, 0.31, "feature learning")],
)
def test_a_kernel_that_grows_has_not_turned(distance: float, gap: float, regime: str) -> None:
    seen = {"drift": 4.0, "kernel_distance": distance, "linearization_gap": gap}
    result = verdict(seen)
    assert result.regime == regime
    assert f"turned by {distance:.2g} (1 - cosine, 1 at most)" in result.reason
    assert verdict({**seen, "drift": 0.05, "linearization_gap": 0.0}).regime == "lazy"


@pytest.mark.parametrize("cosine", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("size", [2.5, 8.0])
def test_how_large_the_kernel_has_become(cosine: float, size: float) -> None:
    drift = math.sqrt(size**2 - 2 * size * cosine + 1)
    reason = verdict({"drift": drift, "kernel_distance": 1 - cosine}).reason
    assert f"{size:.3g} times as large as at the start" in reason


def test_what_it_means_and_what_it_rests_on() -> None:
    seen = {"drift": 0.5, "kernel_distance": 0.2, "linearization_gap": 0.4}
    result = verdict(seen, samples=64, outputs=50257)
    assert result.text.startswith("Feature learning: the kernel moved by 50.0% of its norm")
    assert "For lazy training, try a wider network" in result.text
    assert "It rests on 64 samples." in result.text
    assert "random directions of 50,257 outputs" in result.text
    assert "which are few" in verdict(seen, samples=8).limits
    assert verdict({}).text.startswith("Unknown: ")


def test_parameters_that_ran_away_have_diverged() -> None:
    seen = {"drift": 0.7, "linearization_gap": 6e13, "param_drift": 1e20}
    result = verdict(seen)
    assert result.regime == "diverged"
    assert "1e+20 times their norm" in result.reason


def test_a_kernel_that_was_measured_once_has_not_moved() -> None:
    torch.manual_seed(0)
    net, x = torch.nn.Linear(3, 2), torch.randn(6, 3)
    monitor = Monitor((x, torch.arange(6) % 2), kernel="optimizer", at_steps=[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        monitor.step(net, optimizer)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    result = monitor.finish(net, optimizer)
    assert monitor.history["ntk/drift"][-1] == 0.0  # beside itself
    assert "kernel" not in result.reason
    late = Monitor((x, None), anchor_at=10)
    late.step(net, optimizer)
    assert late.finish(net, optimizer).reason == "the run has not come to step 10, anchor_at"
