"""Trained networks of small outputs against kernel regression with the infinite-width kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ntk_predicts_network.py"


@pytest.mark.slow
def test_networks_come_to_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "out.png"
    run(SCRIPT, monkeypatch, "--quick", "--out", str(picture))
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["floor"]["measured"] == pytest.approx(1.0, abs=0.15)
    falling = found["exponents"]["s = (m_0/m)^¼"]
    assert falling["measured"] == pytest.approx(falling["theory"], abs=0.15)
    small = [row[-1] for row in found["errors"]["s = 0.2"]]
    assert max(small) < 0.06 * found["size"]
    assert f"s^{found['floor']['measured']:.2f}" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert min(image.size) > 400
