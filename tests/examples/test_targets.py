"""One-hot and zero-centred targets: what the example says is so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_only_the_loss_differs_and_by_the_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    picture = tmp_path / "new" / "out.png"
    small = ("--train", "80", "--few", "8", "--test", "30", "--seeds", "6", "--steps", "20")
    found = importlib.import_module("targets").main(
        [*small, "--widths", "8", "32", "128", "--out", str(picture)]
    )
    assert found == json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["accuracy"]["one-hot"] == found["accuracy"]["zero-centred"]
    assert found["accuracy"]["one-hot"][-1] > 0.8
    # At time 0 the losses are ½ and ½ (1 - 1/C), and the constant is learned long before the rest.
    assert found["loss"]["one-hot"][0] == pytest.approx(0.5, abs=0.01)
    assert found["loss"]["zero-centred"][0] == pytest.approx(0.45, abs=0.01)
    middle = next(i for i, t in enumerate(found["times"]) if t > 5)
    assert found["loss of the constant"][middle] < 0.02 * found["loss of the constant"][0]
    assert found["loss"]["zero-centred"][middle] > 0.3 * found["loss"]["zero-centred"][0]
    assert found["constant"][0] > 0.95 > 0.1 > found["classes"][0]
    assert found["main"]["slope of the leak, predicted"] == pytest.approx(-0.5, abs=0.2)
    leaks = [row["trained"]["leak"] for row in found["finite"]]
    assert leaks == sorted(leaks, reverse=True)
    assert "one-hot" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert min(image.size) > 600
    assert not [path for path in picture.parent.iterdir() if path.name.startswith(".")]
