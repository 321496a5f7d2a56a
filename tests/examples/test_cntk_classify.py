"""The example that classifies images by a convolutional tangent kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "cntk_classify.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SCRIPT.parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_learns_digits() -> None:
    out = run("--train", "100", "--test", "60")
    line = next(line for line in out.splitlines() if line.startswith("accuracy"))
    assert float(line.split(": ")[1].rstrip("%")) > 85
    lowest = next(line for line in out.splitlines() if line.startswith("eigenvalues"))
    assert float(lowest.split()[2]) > 0


def test_it_says_how_many_images_there_are() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--train", "5000"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "1797" in done.stderr
