"""Weights of narrow and wide networks as a moving picture: the wide ones move as 1/m."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "lazy_weights.py"


@pytest.mark.slow
def test_weights_move_less_in_wide_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "out.png"
    widths = ("--widths", "10", "32", "100")
    run(SCRIPT, monkeypatch, "--quick", *widths, "--out", str(picture))
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["exponent"]["measured"] == pytest.approx(-1.0, abs=0.15)
    for row in found["movement"]:
        assert row == sorted(row, reverse=True)
        assert row[0] > 0.3
    assert found["loss_left"] == sorted(found["loss_left"], reverse=True)
    assert f"{found['exponent']['measured']:.2f}" in capsys.readouterr().out
    names = [path.name for path in sorted(picture.parent.iterdir())]
    assert names == ["out.gif", "out.json", "out.png"]
    with Image.open(picture.with_suffix(".gif")) as moving:
        assert moving.n_frames > 8
