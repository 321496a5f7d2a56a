"""TensorBoard's tab: its routes, and that they give nothing but the page and the runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from page_runs import watched
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client, TestResponse

from torch_ntk.tensorboard_plugin import NTKPlugin, write_document


def plugin(logdir: Path | str) -> NTKPlugin:
    return NTKPlugin(TBContext(logdir=str(logdir)))


def ask(plugin: NTKPlugin, route: str, **query: str) -> TestResponse:
    app: Any = plugin.get_plugin_apps()[route]
    return Client(app).get(route, query_string=query)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_document(tmp_path / "runs" / "a b" / "ntk.json", watched(steps=1).document("version_0"))
    write_document(tmp_path / "secret" / "ntk.json", {"version": 1, "secret": True})
    return tmp_path / "runs"


def test_the_tab_is_there_when_there_is_a_run(runs: Path) -> None:
    tab = plugin(runs)
    assert tab.is_active()
    metadata = tab.frontend_metadata()
    assert (metadata.es_module_path, metadata.tab_name) == ("/index.js", "NTK")
    shutil.rmtree(runs / "a b")
    assert tab.is_active()  # TensorBoard asks often: the folder is not searched again
    assert not plugin(runs).is_active()


@pytest.mark.parametrize("logdir", ["", "gs://bucket/runs", "/does/not/exist"])
def test_other_folders_have_no_runs(logdir: str) -> None:
    assert not plugin(logdir).is_active()
    assert ask(plugin(logdir), "/runs").json == []


def test_runs_and_their_documents(runs: Path) -> None:
    assert ask(plugin(runs), "/runs").json == ["a b"]
    reply = ask(plugin(runs), "/data", run="a b")
    kept = json.loads((runs / "a b" / "ntk.json").read_text(encoding="utf-8"))
    assert reply.json == {**kept, "name": "a b"}


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../secret", "a b/../../secret", "/etc", "%2e%2e/secret", "a b/ntk.json"),
        *("a b\x00", "..\\secret", "{absolute}"),
    ],
)
def test_a_name_is_no_path(runs: Path, name: str) -> None:
    name = name.format(absolute=runs.parent / "secret") if "{" in name else name
    reply = ask(plugin(runs), "/data", run=name)
    assert reply.status_code == 404
    assert "secret" not in reply.text


def test_a_file_that_is_no_document_is_no_run(runs: Path) -> None:
    (runs / "a b" / "ntk.json").write_text("{")
    assert ask(plugin(runs), "/data", run="a b").status_code == 404


def test_the_modules_are_served_as_such_and_name_each_other(runs: Path) -> None:
    routes = set(plugin(runs).get_plugin_apps()) - {"/runs", "/data"}
    assert routes == {"/index.js", "/page.js", "/charts.js", "/svg.js", "/page.css"}
    for route in routes:
        reply = ask(plugin(runs), route)
        kind = "text/css" if route.endswith(".css") else "application/javascript"
        assert reply.content_type.startswith(kind)
        imported = [line for line in reply.text.splitlines() if line.startswith("import ")]
        assert all(line.split('"./')[1].removesuffix('";') in str(routes) for line in imported)
