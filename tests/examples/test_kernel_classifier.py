"""The example that compares `NTKClassifier` with a support vector machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from example_runs import end_of

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "kernel_classifier.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SCRIPT.parents[1],
    )


def test_the_kernels_keep_up_with_a_support_vector_machine() -> None:
    done = run("--quick")
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^  (.+?) +([\d.]+)%", done.stdout, flags=re.M))
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
