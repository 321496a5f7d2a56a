"""The example that classifies images by a convolutional tangent kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_runs import end_of, run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "cntk_classify.py"


def test_it_learns_digits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(SCRIPT, monkeypatch, "--train", "80", "--test", "40", "--depth", "3", "--size", "6")
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("accuracy"))
    assert float(line.split(": ")[1].rstrip("%")) > 85
    lowest = next(line for line in out.splitlines() if line.startswith("eigenvalues"))
    assert float(lowest.split()[2]) > 0


@pytest.mark.parametrize(("network", "least"), [("unet", 75), ("attention", 70)])
def test_other_networks_learn_digits_too(
    network: str, least: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(SCRIPT, monkeypatch, "--network", network, "--train", "80", "--test", "40", "--size", "6")
    line = capsys.readouterr().out.splitlines()[-1]
    assert float(line.split(": ")[1].rstrip("%")) > least


def test_it_says_how_many_images_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1797" in str(end_of(SCRIPT, monkeypatch, "--train", "5000"))
