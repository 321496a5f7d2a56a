"""The comparison of parameterizations: what it measures is what theory says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "parameterizations.py"


def test_exponents_are_those_of_theory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "out.png"
    run(SCRIPT, monkeypatch, "--quick", "--out", str(picture))
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    exponents = found["exponents"]
    assert set(exponents["Θ_0"]) == {"standard", "NTK", "μP"}
    for name, row in exponents.items():
        for value in row.values():
            assert value["measured"] == pytest.approx(value["theory"], abs=0.15), name
    assert exponents["Θ_0"]["standard"]["theory"] == 1
    out, _ = capsys.readouterr()
    assert all(name in out for name in exponents)
    with Image.open(picture) as image:
        assert min(image.size) > 600
