"""The example that compares `NTKClassifier` with a support vector machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from example_runs import end_of, run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "kernel_classifier.py"


def test_the_kernels_keep_up_with_a_support_vector_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(SCRIPT, monkeypatch, "--quick")
    found = dict(re.findall(r"^  (.+?) +([\d.]+)%", capsys.readouterr().out, flags=re.M))
    scores = {name: float(score) for name, score in found.items()}
    assert len(scores) == 4
    support = scores.pop("SVC, RBF, gamma='scale'")
    assert "CNTK(3, pooling='gap')" in scores
    assert support > 75
    assert min(scores.values()) > support - 5


def test_more_images_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    error = end_of(SCRIPT, monkeypatch, "--train", "5000")
    assert isinstance(error, ValueError)
    assert "1797" in str(error)
