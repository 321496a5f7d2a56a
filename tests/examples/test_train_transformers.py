"""The example trains a Hugging Face classifier by both trainers and reports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from example_runs import run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_transformers.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_both_trainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(SCRIPT, monkeypatch, "--quick", "--width", "16", "--log-dir", str(tmp_path))
    said = capsys.readouterr().out
    assert "160 texts for training, 40 held out" in said
    assert said.count("measurements in 5 steps") == 2
    assert len(re.findall(r"It rests on (8|16|32) samples", said)) == 2  # by the time they take
    for name in ("transformers", "lightning"):
        assert list((tmp_path / name).rglob("events.out.tfevents*"))
