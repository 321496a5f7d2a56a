"""All examples in a row: which are run, and what becomes of one that fails."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DRAWS = '''"""Draw.

    python examples/{name}.py --quick
"""
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.write_bytes(b"a picture")
out.with_suffix(".json").write_text(json.dumps({{"main": {{"slope": -0.5}}, "other": 3}}))
print("arguments", sys.argv[1:])
'''
RAISES = (
    '"""Fail.\n\n    python examples/b.py --quick --out\n"""\nraise ValueError("no such kernel")\n'
)
SILENT = '"""Draw nothing.\n\n    python examples/c.py --quick --out\n"""\n'
NOT_MEANT = '"""Needs data: python examples/d.py --data-root."""\nraise SystemExit("--out")\n'


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("run_all")


def test_one_that_fails_is_named_and_the_others_run(
    run_all: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "scripts", tmp_path / "new" / "out"
    folder.mkdir()
    for name in "ae":
        (folder / f"{name}.py").write_text(DRAWS.format(name=name))
    (folder / "b.py").write_text(RAISES)
    (folder / "c.py").write_text(SILENT)
    (folder / "d.py").write_text(NOT_MEANT)
    (folder / "_shared.py").write_text(DRAWS.format(name="_shared"))
    out.mkdir(parents=True)
    (out / "c.png").write_bytes(b"of an earlier run")
    assert run_all.main(["--quick", "--out", str(out)], folder) == 1
    printed, bar = capsys.readouterr()
    assert "Failed: b, c." in printed
    assert "exit status 1: ValueError: no such kernel" in printed
    assert "without a picture" in printed
    assert "slope -0.5" in printed
    assert "4/4" in bar
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["a", "b", "c", "e"]
    assert summary["e"]["error"] == ""
    assert summary["e"]["pictures"] == ["e.png"]
    assert summary["e"]["numbers"] == {"slope": -0.5}
    assert summary["e"]["seconds"] > 0
    assert "'--quick', '--out'" in (out / "e.log").read_text(encoding="utf-8")


def test_all_well_is_status_0_and_full_is_not_quick(run_all: ModuleType, tmp_path: Path) -> None:
    folder, out = tmp_path / "scripts", tmp_path / "out"
    folder.mkdir()
    (folder / "a.py").write_text(DRAWS.format(name="a"))
    assert run_all.main(["--out", str(out)], folder) == 0
    assert "--quick" not in (out / "a.log").read_text(encoding="utf-8")


def test_numbers_of_any_json(run_all: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert run_all.main_numbers(path) == {}
    path.write_text('{"widths": [8, 16], "done": true, "fit": {"slope": 1.5, "name": "a"}}')
    assert run_all.main_numbers(path) == {"widths": 16.0, "fit slope": 1.5}
    path.write_text("[")
    assert run_all.main_numbers(path) == {}


def test_the_examples_that_draw_are_found(run_all: ModuleType) -> None:
    found = {path.stem for path in run_all.scripts(EXAMPLES)}
    assert {"attribution", "dynamics_mse", "dynamics_cross_entropy", "targets"} <= found
    assert not {"run_all", "train_with_monitor", "train_transformers", "kernel_classifier"} & found
