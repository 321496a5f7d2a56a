"""The example of six trainings: verdicts follow the width."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("is_my_training_lazy")


def test_wide_networks_are_lazier(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "out.png"
    sizes = ("--widths", "8", "512", "--train", "60", "--test", "60", "--batch", "32")
    times = ("--steps", "15", "--points", "4", "--shares", "0.5", "0.1")
    found = example.main([*sizes, *times, "--out", str(picture)])
    assert found == json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    runs = {(run["width"], run["share"]): run for run in found["runs"]}
    assert set(runs) == {(8, 0.5), (8, 0.1), (512, 0.5), (512, 0.1)}
    for run in runs.values():
        lengths = {len(values) for values in run["history"].values()}
        assert len(lengths) == 1  # one value of each curve at each measurement
        assert run["history"]["ntk/drift"][0] == 0
        assert run["history"]["loss"][-1] < run["history"]["loss"][0]
    times = [run["history"]["time"][-1] for run in runs.values() if run["width"] == 8]
    assert times[0] == pytest.approx(times[1], rel=1e-6)
    for share in (0.5, 0.1):
        drifts = [runs[width, share]["history"]["ntk/drift"][-1] for width in (8, 512)]
        assert drifts[1] < 0.4 * drifts[0]
        assert found["drift_exponents"][f"{share:g}"] < -0.2
    assert runs[8, 0.5]["regime"] == "feature learning"
    out = capsys.readouterr().out
    assert "Width decides" in out
    assert runs[8, 0.5]["verdict"] in out
    with Image.open(picture) as image:
        assert min(image.size) > 600


def test_the_loss_of_squared_error_is_that_of_centred_targets(example: ModuleType) -> None:
    import torch

    labels = torch.tensor([3])
    targets = torch.full((1, 10), -0.1)
    targets[0, 3] = 0.9
    loss = example.loss_of("squared error")
    assert float(loss(targets, labels)) == pytest.approx(0.0, abs=1e-12)
    assert float(loss(targets + 1, labels)) == pytest.approx(5.0, rel=1e-6)


def test_missing_data_and_wrong_numbers(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="fashion-mnist is not under --data-root"):
        example.main(["--dataset", "fashion-mnist", "--data-root", str(tmp_path)])
    with pytest.raises(SystemExit):
        example.arguments(["--widths", "8"])
    assert "--widths two to" in capsys.readouterr().err
