"""Arguments that make no sense end an example at once, with a line that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_runs import end_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "arguments", "text"),
    [
        ("attribution", ("--images", "0"), "must be at least 1"),
        ("attribution", ("--remove", "1000"), "must be less than --train"),
        ("attribution", ("--train", "5000"), "there are 1797 digits"),
        ("distill_digits", ("--train", "5000"), "there are 1797 digits"),
        ("dynamics_mse", ("--steps", "0"), "must be at least 1"),
        ("dynamics_mse", ("--train", "5000"), "there are 1797 digits"),
        ("kernel_at_init", ("--widths", "8"), "at least 2"),
        ("kernel_at_init", ("--depths", "1"), "a single layer has no width"),
        ("kernel_in_training", ("--seeds", "1"), "at least 2"),
        ("lazy_weights", ("--widths", "8"), "at least 2"),
        ("lazy_weights", ("--frames", "1"), "at least 2"),
        ("linear_regression", ("--rates", "0.1"), "at least two"),
        ("linear_regression", ("--rates", "0.1", "2"), "between 0 and 1"),
        ("linear_regression", ("--samples", "1"), "at least 2"),
        ("ntk_predicts_network", ("--scales", "1"), "at least two positive"),
        ("ntk_predicts_network", ("--widths", "8"), "at least 2"),
        ("parameterizations", ("--widths", "8"), "at least 2"),
    ],
)
def test_bad_arguments(
    script: str,
    arguments: tuple[str, ...],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = end_of(EXAMPLES / f"{script}.py", monkeypatch, *arguments)
    assert isinstance(error, SystemExit)
    assert error.code not in (None, 0)
    assert text in capsys.readouterr().err + str(error)
