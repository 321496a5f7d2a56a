"""The kernel against the width, at initialization and in training: exponents are as in theory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_runs import run
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _found(script: str, folder: Path, patch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The numbers of a script, which has also drawn a picture."""
    picture = folder / "new" / "out.png"
    run(EXAMPLES / script, patch, *arguments, "--out", str(picture))
    assert [path.name for path in sorted(picture.parent.iterdir())] == ["out.json", "out.png"]
    with Image.open(picture) as image:
        assert min(image.size) > 400
    found: dict[str, Any] = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_kernels_come_to_the_limit_and_to_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _found("kernel_at_init.py", tmp_path, monkeypatch, "--quick")
    printed = capsys.readouterr().out
    assert len(found["exponents"]) == 4  # two activations, two depths
    for name, row in found["exponents"].items():
        assert f"{row['measured']:+.2f}" in printed
        assert row["measured"] == pytest.approx(-0.5, abs=0.15), name
        assert row["between_draws"] == pytest.approx(-0.5, abs=0.15), name
    last = {name: [row[-1] for row in rows] for name, rows in found["errors"].items()}
    assert max(max(errors) for errors in last.values()) < 0.2


@pytest.mark.slow
def test_smooth_networks_leave_their_kernel_less_than_the_bound_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _found("kernel_in_training.py", tmp_path, monkeypatch, "--quick")
    for activation, rows in found["exponents"].items():
        assert set(rows) == {"gap", "movement", "kernel"}
        for name, row in rows.items():
            assert row["measured"] == pytest.approx(row["expected"], abs=0.15), (activation, name)
    smooth = found["exponents"]["tanh"]
    assert smooth["movement"]["expected"] == -0.5
    assert smooth["gap"]["expected"] == smooth["kernel"]["expected"] == -1.0
    assert max(found["loss_left"].values()) < 1e-3
    assert f"{smooth['kernel']['measured']:+.2f}" in capsys.readouterr().out
