"""The published pages of the benchmarks are what their measurements say."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _figures(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"benchmarks/{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["analytic", "empirical", "features", "monitor"])
def test_a_page_is_written_from_the_committed_figures(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = (ROOT / f"docs/benchmarks/{name}.md").read_text(encoding="utf-8")
    assert import_module(f"{name}_report").page(_figures(name)) == page


def test_the_costs_of_large_kernels_are_written_from_the_committed_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert import_module("scale_report").page(_figures("scale")) in page


def test_the_readme_quotes_the_committed_figures() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    row = _figures("empirical")["rows"][0]
    assert (row["name"], row["n"], row["output"]) == ("MLP 784-1024³-10", 64, "full")
    ours, tutorial = (row["found"][who]["seconds"] for who in ("ours", "tutorial"))
    assert f"takes {1e3 * ours:.0f} ms on two CPU cores" in readme
    assert f"the torch.func tutorial take {tutorial:.1f} s" in readme
    found = (row["found"][who] for who in ("ours", "peer", "nngeometry"))
    assert all(
        f"{1e3 * f['seconds']:.0f} ms, {f['memory'] / 2**20:.0f} MB" in readme for f in found
    )


def test_every_page_is_tested() -> None:
    pages = {path.stem for path in (ROOT / "docs/benchmarks").glob("*.md")}
    assert pages == {"analytic", "empirical", "features", "index", "monitor"}


def test_growth_is_drawn_for_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    growth = {
        "n": [{"n": 1, "ours": 2.0, "peer": 3.0}, {"n": 4, "ours": 5.0, "peer": None}],
        "width": [{"width": 8, "ours": 1.0, "peer": None}],
    }
    axes = {"n": ("samples", "ms"), "width": ("width", "")}
    figure = import_module("figures").growth_figure(growth, axes, "other", ticks=(1, 5))
    first, second = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in first.lines}
    assert lines == {"torch_ntk": [[1.0, 2.0], [4.0, 5.0]], "other": [[1.0, 3.0]]}
    assert [line.get_label() for line in second.lines] == ["torch_ntk"]
    assert [t.get_text() for t in first.get_yticklabels()] == ["1", "5"]
    assert (first.get_xlabel(), first.get_ylabel()) == ("samples", "ms")
