"""From two numbers to a word."""

from __future__ import annotations

import math

import pytest

from torch_ntk.monitor import verdict


@pytest.mark.parametrize(
    ("drift", "gap", "regime"),
    [
        (0.0, 0.0, "lazy"),
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
