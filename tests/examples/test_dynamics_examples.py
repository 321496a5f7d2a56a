"""The examples that draw predicted training over real training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_runs import run
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = ("dynamics_mse.py", "dynamics_cross_entropy.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_wide_network_does_what_was_predicted(
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "new" / "out.png"
    run(EXAMPLES / script, monkeypatch, "--quick", "--out", str(picture))
    out, err = capsys.readouterr()
    lines = out.splitlines()
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
    assert "100%" in err or "step/s" in err  # a progress bar
    found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["losses"][0] for row in found["runs"]] == pytest.approx(
        [row["predicted"][0] for row in found["runs"]], rel=1e-5
    )
    assert list(found["main"].values()) == pytest.approx([x / 100 for x in off], abs=1e-3)
    with Image.open(picture) as image:
        assert min(image.size) > 600
        assert len(set(image.convert("L").tobytes())) > 50
