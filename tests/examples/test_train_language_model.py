"""The example trains a small GPT-2, draws, and writes the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_language_model.py"


@pytest.mark.slow
def test_a_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, runs = tmp_path / "lm.png", tmp_path / "runs"
    options = ("--quick", "--kernel", "optimizer", "--steps", "12")
    run(SCRIPT, monkeypatch, *options, "--out", str(picture), "--log-dir", str(runs))
    assert "2 layers of width 64" in capsys.readouterr().out
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["losses"][-1] < found["losses"][0]
    assert found["history"]["step"][-1] == 12
    assert found["main"]["drift"] > 0.0
    assert "random directions of 16,384 outputs" in found["verdict"]
    assert picture.stat().st_size > 10_000
    assert "language model" in picture.with_suffix(".html").read_text(encoding="utf-8")
    assert (runs / "ntk.json").is_file()
