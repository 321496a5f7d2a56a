"""The example that attributes predictions to training images and retrains without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "attribution.py"


def test_margins_fall_without_what_they_rest_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "out.png"
    run(SCRIPT, monkeypatch, "--quick", "--out", str(picture))
    out, _ = capsys.readouterr()
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    change = {which: [row[0] for row in rows] for which, rows in found["change"].items()}
    mean = {which: sum(rows) / len(rows) for which, rows in change.items()}
    assert mean["highest"] < -1.0 < -0.4 < mean["random"] < 0.4 < mean["lowest"]
    pairs = zip(change["highest"], change["random"], strict=True)
    assert all(highest < random for highest, random in pairs)
    assert f"{mean['highest']:+.2f}" in out
    with Image.open(picture) as image:
        assert min(image.size) > 500
        assert len(set(image.convert("L").tobytes())) > 50
