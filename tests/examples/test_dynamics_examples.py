"""The examples that draw predicted training over real training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = ("dynamics_mse.py", "dynamics_cross_entropy.py")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=EXAMPLES.parent,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_wide_network_does_what_was_predicted(script: str, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "out.png"
    done = run(script, "--quick", "--out", str(picture))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["step"])
    rows = [[float(part) for part in line.split()] for line in lines[head + 1 : head + 7]]
    assert rows[0][0] == 0
    assert rows[-1][0] == 60
    start, end = rows[0], rows[-1]
    assert start[1] == start[2]  # both curves begin at one loss
    assert end[4] < 0.5 * start[4]  # the wide network has learned
    assert end[3] == pytest.approx(end[4], rel=0.2)  # as predicted
    off = [float(x.split()[-1].rstrip("%")) for x in lines if "test outputs are off" in x]
    assert off[1] < 0.5 * off[0]
    assert "100%" in done.stderr or "step/s" in done.stderr  # a progress bar
    with Image.open(picture) as image:
        assert min(image.size) > 600
        assert len(set(image.convert("L").tobytes())) > 50


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("--steps", "0"), "must be at least 1"), (("--train", "5000"), "there are 1797 digits")],
    ids=["steps", "train"],
)
def test_bad_arguments(arguments: tuple[str, ...], text: str) -> None:
    done = run(SCRIPTS[0], *arguments)
    assert done.returncode != 0
    assert text in done.stderr
    assert "Traceback" not in done.stderr
