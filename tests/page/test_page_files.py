"""Documents in the folders of runs, and the command that makes a page of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from page_runs import watched

from torch_ntk.command import main
from torch_ntk.monitor import Monitor
from torch_ntk.tensorboard_plugin import (
    document_name,
    find_documents,
    read_document,
    write_document,
)


def test_names_of_files_tell_monitors_apart() -> None:
    names = ["ntk/", "ntk/drift_", "a/b/", "a_b/", "a.b/", "é/", "../../x/", "n" * 999]
    files = [document_name(name) for name in names]
    assert files[0] == "ntk.json"
    assert len(set(files)) == len(names)
    for file in files:
        assert Path(file).name == file
        assert len(file) < 120


def test_runs_are_found_and_the_last_one_comes_first(tmp_path: Path) -> None:
    for k, where in enumerate(["b/version_0/ntk.json", "a/ntk.json", "a/ntk-other.json"]):
        write_document(tmp_path / where, {"version": 1, "k": k})
        os.utime(tmp_path / where, (k, k))
    (tmp_path / "a" / "other.json").write_text("{}")
    assert list(find_documents(tmp_path)) == ["a/ntk-other", "a/ntk", "b/version_0"]
    assert read_document(find_documents(tmp_path)["b/version_0"], "b") == {
        "version": 1,
        "k": 0,
        "name": "b",
    }
    assert not list(tmp_path.rglob(".*"))  # what was written beside has its name


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_document(tmp_path / "secret" / "ntk.json", {"version": 1})
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "ntk.json").symlink_to(tmp_path / "secret" / "ntk.json")
    (tmp_path / "runs" / "b").symlink_to(tmp_path / "secret")
    assert find_documents(tmp_path / "runs") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '"a"'])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ntk.json").write_text(text)
    with pytest.raises(ValueError, match="`path`"):
        read_document(tmp_path / "ntk.json", "a")


def test_the_command_writes_the_page_of_two_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        write_document(tmp_path / name / "ntk.json", watched(steps=1).document("version_0"))
    output = tmp_path / "page.html"
    runs = [str(tmp_path / name) for name in ("first", "second")]
    assert main(["report", *runs, "-o", str(output)]) == 0
    page = output.read_text(encoding="utf-8")
    data = json.loads(page.partition('id="runs">')[2].partition("</script>")[0])
    assert [run["name"] for run in data] == ["first", "second"]
    output.unlink()
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "-o", str(output)]) == 1
    assert "holds no monitored run" in capsys.readouterr().err
    write_document(tmp_path / "first" / "ntk.json", {"version": 2})
    assert main(["report", *runs, "-o", str(output)]) == 1
    assert "`documents`" in capsys.readouterr().err
    assert not output.exists()


def test_the_command_names_runs_by_what_differs(tmp_path: Path) -> None:
    """`version_0` is the name of every run's last folder."""

    def named(*folders: str) -> list[str]:
        output = tmp_path / "page.html"
        assert main(["report", *(str(tmp_path / f) for f in folders), "-o", str(output)]) == 0
        page = output.read_text(encoding="utf-8")
        data = json.loads(page.partition('id="runs">')[2].partition("</script>")[0])
        return [run["name"] for run in data]

    for where in ("a/version_0/ntk.json", "b/version_0/ntk.json", "b/version_0/ntk-other.json"):
        write_document(tmp_path / "runs" / where, {"version": 1})
    assert named("runs/a/version_0") == ["a/version_0"]
    assert named("runs/a", "runs/a/version_0") == ["a/version_0"]
    own = {"b/version_0/ntk", "b/version_0/ntk-other"}
    assert named("runs/a/version_0", "runs/b/version_0")[0] == "a/version_0"
    assert set(named("runs")) == {"a/version_0", *own}


def test_to_find_runs_loads_no_pytorch(tmp_path: Path) -> None:
    """TensorBoard loads the plugin whenever it starts, and PyTorch takes seconds."""
    code = (
        "import sys; from torch_ntk.tensorboard_plugin import *; "
        f"assert find_documents(__import__('pathlib').Path({str(tmp_path)!r})) == {{}}; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_monitor_writes_its_document_into_the_folder_of_a_run(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = Monitor((x, y), folder=tmp_path / "run", at_steps=range(6), metrics=("drift",))
    steps = []
    for _ in range(6):
        monitor.step(net, optimizer)
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        steps.append(json.loads((tmp_path / "run" / "ntk.json").read_text())["steps"][-1])
    assert steps == [0, 1, 1, 3, 3, 3]
    monitor.finish(net, optimizer)
    (path,) = find_documents(tmp_path).values()
    found = read_document(path, "run")
    assert found == json.loads(json.dumps(monitor.document("run")))
    assert found["steps"][-1] == 6


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    net, x = torch.nn.Linear(3, 2), torch.randn(6, 3)
    options: dict[str, Any] = {"folder": tmp_path / "file" / "run", "metrics": ("drift",)}
    with pytest.raises(OSError, match="run"):
        Monitor((x,), **options).step(net)
    careful = Monitor((x,), on_error="warn", **options)
    with pytest.warns(UserWarning, match="cannot write its page"):
        careful.step(net)
    assert careful.history["ntk/drift"] == [0.0]
    with pytest.raises(TypeError, match="folder"):
        Monitor((x,), folder=3)  # type: ignore[arg-type]
