"""The example that trains images through kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distill_digits.py"


def test_distilled_images_teach_more_than_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "out.png"
    run(SCRIPT, monkeypatch, "--quick", "--out", str(picture))
    assert "distilled, unseen networks" in capsys.readouterr().out
    results = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))["results"]
    mean = results["real images, mean of 10 choices"]
    assert results["distilled, unseen networks"] > mean + 0.05
    assert results["distilled, infinitely wide"] > mean + 0.05
    assert results["all 300 images"] > 0.9
    with Image.open(picture) as image:
        assert min(image.size) > 600
        assert len(set(image.convert("L").tobytes())) > 50
