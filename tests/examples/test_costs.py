"""The example that extrapolates what kernels cost."""

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
    return importlib.import_module("costs")


def test_extrapolation_is_by_entries(example: ModuleType) -> None:
    cost = example.Cost("CNN", [10, 100], [55, 5050], [0.055, 5.05])
    assert cost.each == pytest.approx(1e-3)
    assert cost.exponent == pytest.approx(1.0)
    assert cost.hours(60_000) == pytest.approx(60_000 * 60_001 / 2 * 1e-3 / 3600)
    assert example.small(2.5e-8) == "25 ns"
    assert example.large(1234.5) == "1,234 h"
    assert example.large(1e-5) == "36 ms"


def test_every_kind_is_measured(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "out.png"
    small = ("--quick", "--depth", "3", "--side", "8", "--repeats", "1")
    found = example.main([*small, "--out", str(picture)])
    assert found == json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    costs = {cost["kind"]: cost for cost in found["costs"]}
    assert set(costs) == set(example.LECTURE)
    for kind, cost in costs.items():
        assert all(seconds > 0 for seconds in cost["seconds"]), kind
        assert [n * (n + 1) // 2 for n in cost["samples"]] == cost["entries"]
    out = capsys.readouterr().out
    assert "O(1000) GPU-hours" in out
    assert "60,000 images" in out
    with Image.open(picture) as image:
        assert min(image.size) > 450
