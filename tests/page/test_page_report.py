"""The document of a training, and the file in which the page has it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from page_runs import watched
from torch import nn

from torch_ntk import empirical_ntk
from torch_ntk.monitor import Monitor, write_report
from torch_ntk.monitor.page._report import STATIC


class Scripts(HTMLParser):
    """What a browser takes for scripts, for the title, and for tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.title, self.tags, self._open = "", list[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._open == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.fixture(scope="module")
def monitor() -> Monitor:
    return watched()


def test_the_numbers_are_those_of_the_history(monitor: Monitor) -> None:
    page, history = monitor.document("a"), monitor.history
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    assert (page["version"], page["name"], page["prefix"]) == (1, "a", "ntk")
    assert page["steps"] == history["step"] == [0, 1, 2, 3]
    assert page["verdict"]["regime"] == monitor.verdict.regime
    curves = {curve["name"]: curve for curve in page["curves"]}
    for name in ("drift", "kernel_distance", "linearization_gap", "condition"):
        assert curves[name]["values"] == pytest.approx(history[f"ntk/{name}"], rel=1e-4)
    assert curves["velocity"]["values"][0] is None  # JSON has no NaN
    assert [t["value"] for t in curves["linearization_gap"]["thresholds"]] == [0.1, 0.3]
    assert [t["value"] for t in curves["kernel_distance"]["thresholds"]] == [0.05]
    assert {curve["panel"] for curve in curves.values()} <= {p["title"] for p in page["panels"]}
    drifts = {n: c[-1] for n, c in history.items() if n.startswith("ntk/module_drift/")}
    modules = page["modules"]
    assert [f"ntk/module_drift/{n}" for n in modules["names"]] == list(drifts)
    assert modules["values"] == pytest.approx(list(drifts.values()), rel=1e-4)


def test_the_maps_are_kernels_by_class() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(6, 4), torch.tensor([2, 0, 1, 0, 2, 1])
    network = nn.Linear(4, 3)
    monitor = Monitor((x, y), metrics=("drift",))
    monitor.step(network)
    maps = monitor.document()["maps"]
    assert maps["classes"] == [0, 0, 1, 1, 2, 2]
    (entry,) = maps["steps"]
    kernel = empirical_ntk(network.double(), x.double(), output="mean")
    order = torch.tensor([1, 3, 2, 5, 0, 4])
    kernel = kernel[order][:, order]
    upper = torch.tensor(entry["entries"], dtype=torch.float64) * entry["unit"]
    rows, columns = torch.triu_indices(6, 6)
    error = (upper - kernel[rows, columns]).abs().max()
    assert error <= 0.5001 * kernel.abs().max() / 999 + 1e-4 * kernel.abs().max()


def test_points_are_those_of_the_network(monitor: Monitor) -> None:
    points = monitor.document()["linearization"]
    assert points["step"] == 3
    assert points["outputs"] == 3
    assert points["output"] == [0, 1, 2] * 12
    assert [i for i, own in enumerate(points["own"]) if own] == [3 * i + i % 3 for i in range(12)]
    gap = torch.tensor(points["network"]) - torch.tensor(points["linearized"])
    assert gap.norm() > 0


def test_many_measurements_keep_an_even_choice_of_maps() -> None:
    """Each map would cost memory, and each sample a row, however many there are."""
    x, network = torch.randn(80, 2), nn.Linear(2, 1)
    monitor = Monitor((x, x[:, :1]), metrics=("drift",), every_n_steps=1)
    for _ in range(100):
        monitor.step(network)
    page = monitor.document()
    steps = [entry["step"] for entry in page["maps"]["steps"]]
    assert len(steps) == 32
    assert (steps[0], steps[-1]) == (0, 99)
    gaps = [b - a for a, b in pairwise(steps)]
    assert max(gaps) <= 3 * min(gaps[:-1]) + 1
    assert page["maps"]["classes"] is None
    assert len(page["maps"]["steps"][0]["entries"]) == 64 * 65 // 2


def test_entries_that_are_not_finite_are_told_apart(tmp_path: Path) -> None:
    monitor = watched(steps=1)
    kernel = monitor._session.pictures.maps[-1][1]
    kernel[0, 1] = math.nan
    kernel[2, 2] = math.inf
    entries = monitor.document()["maps"]["steps"][-1]["entries"]
    assert [k for k, level in enumerate(entries) if level is None] == [1, 12 + 11]
    assert max(level for level in entries if level is not None) == 999
    monitor.report(tmp_path / "report.html")


def test_a_resumed_training_has_the_maps_of_before(monitor: Monitor) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    other = Monitor((x, y), metrics=tuple(monitor._session.record.metrics))
    other.load_state_dict(monitor.state_dict())
    assert other.document("a") == monitor.document("a")


def test_nothing_measured_is_a_document_too() -> None:
    page = Monitor(4).document()
    empty = ("modules", "spectra", "maps", "linearization", "step", "samples")
    assert [page[name] for name in empty] == [None] * len(empty)
    assert page["steps"] == page["curves"] == []


@pytest.mark.parametrize("name", ["</script><img src=x>", "<!--<script>", 'a"b & <b>', "é\u2028"])
def test_no_name_ends_its_script(monitor: Monitor, tmp_path: Path, name: str) -> None:
    path = monitor.report(tmp_path / "report.html", name)
    assert list(tmp_path.iterdir()) == [path]
    page = path.read_text(encoding="utf-8")
    found = Scripts(page)
    assert "img" not in found.tags
    assert found.title == f"NTK of {name}"
    (attributes, data), (kind, script) = found.scripts
    assert attributes["type"] == "application/json"
    assert json.loads(data)[0]["name"] == name
    assert kind == {"type": "module"}
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)


def test_modules_can_be_joined() -> None:
    """In one file they share their names, which a browser would refuse to have twice."""
    modules = [path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")]
    pattern = re.compile(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", re.M)
    names = [name for text in modules for name in pattern.findall(text)]
    assert len(names) > 30
    assert len(names) == len(set(names))


def test_the_page_names_no_other_host(monitor: Monitor, tmp_path: Path) -> None:
    page = monitor.report(tmp_path / "report.html").read_text(encoding="utf-8")
    links = set(re.findall(r"[a-z]+://[^\s\"'`)]+", page))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, which nothing asks for
    assert "default-src 'none'" in page


@pytest.mark.parametrize("documents", [[], [{}], [{"version": 2}]])
def test_other_documents_are_refused(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`documents`"):
        write_report(tmp_path / "report.html", documents)
    assert not any(tmp_path.iterdir())
