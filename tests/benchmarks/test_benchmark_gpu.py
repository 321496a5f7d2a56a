"""The script for a GPU runs to its end where there is none, and finds what is wrong."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    module = import_module("gpu")
    monkeypatch.setattr(module, "best", lambda run, **_: (run(), 1e-3)[1])
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", *arguments])
    return int(script.main())


def test_a_dry_run_checks_every_kind_of_row(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.json"
    assert run(script, monkeypatch, "--output", str(path)) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    finite, infinite = ["mlp", "gap"], ["gap", "gap", "flatten", "pooled", "gap", "gap", "mlp"]
    assert [r["net"] for r in rows] == finite + infinite
    assert all(r["error"] <= script.LARGEST_ERROR and "failed" not in r for r in rows)
    assert all("torch_func_ms" in r and "checked_ms" in r for r in rows[:2])


def test_a_wrong_row_and_a_failing_one_are_reported(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def infinite(job: dict[str, object], device: str) -> dict[str, float]:
        if job["net"] == "mlp":
            raise RuntimeError("out of luck")
        return {"ms": 1.0, "error": 0.5}

    monkeypatch.setattr(script, "finite", lambda job, device: {"ms": 1.0})
    monkeypatch.setattr(script, "infinite", infinite)
    assert run(script, monkeypatch) == 1
    shown = capsys.readouterr().out
    assert "WRONG" in shown
    assert "failed: RuntimeError: out of luck" in shown


def test_no_row_begins_after_the_time(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "--minutes", "0") == 0
    assert capsys.readouterr().out.count("left out") == len(script.jobs(True))
