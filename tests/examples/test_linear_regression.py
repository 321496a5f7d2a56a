"""Linear regression: closed form, differential equation and finite steps say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from example_runs import run
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "linear_regression.py"


def test_flow_and_steps_are_those_of_the_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "out.png"
    run(SCRIPT, monkeypatch, "--quick", "--out", str(picture))
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    assert max(found["ode"].values()) < 1e-9
    assert max(found["from_prediction"]) < 1e-12
    assert found["limit_off"] < 1e-12
    assert found["slope"]["measured"] == pytest.approx(1.0, abs=0.15)
    assert found["from_flow"] == sorted(found["from_flow"], reverse=True)
    assert f"η^{found['slope']['measured']:.2f}" in capsys.readouterr().out
    assert torch.tensor(found["solution"]).isfinite().all()
    assert [path.name for path in sorted(picture.parent.iterdir())] == ["out.json", "out.png"]
    with Image.open(picture) as image:
        assert min(image.size) > 400
