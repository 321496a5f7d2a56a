"""Generated code: where it is kept, what is run of it, and by how many threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from small_nets import conv, dense
from torch import nn

from torch_ntk import CNTK, analytic_explain, mlp_kernels
from torch_ntk.activations import Form
from torch_ntk.analytic._api import evaluation_mode
from torch_ntk.analytic.engine import fused
from torch_ntk.analytic.engine._plan import plan
from torch_ntk.analytic.engine.fused import _module, _threads
from torch_ntk.analytic.engine.fused._assembly import Assembly
from torch_ntk.analytic.engine.fused._source import code
from torch_ntk.analytic.lift import read

SOURCE = """from numba import njit


@njit(cache={cache})
def value():
    return 42
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, with nothing loaded yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(_module.FOLDER, str(folder))
    _module._load.cache_clear()
    return folder


def value() -> int:
    _module._load.cache_clear()
    return int(_module.load(SOURCE)["value"]())


def test_code_is_kept_in_a_folder_of_the_users_own(place: Path) -> None:
    assert value() == 42
    (file,) = place.glob("*.py")
    assert place.stat().st_mode & 0o777 == 0o700
    compiled = set(place.rglob("*.nb?"))
    assert compiled
    written = file.stat().st_mtime_ns
    assert value() == 42
    assert file.stat().st_mtime_ns == written
    assert set(place.rglob("*.nb?")) == compiled  # found, not compiled again
    assert not list(place.glob("*.tmp"))


def test_what_a_file_contains_is_not_run(place: Path) -> None:
    value()
    (file,) = place.glob("*.py")
    right = file.read_bytes()
    file.write_text("raise SystemExit('not ours')\n")
    assert value() == 42
    assert file.read_bytes() == right


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no permissions of this kind")
def test_a_folder_that_others_can_write_is_not_used(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    assert _module.folder() is None
    assert value() == 42
    assert not list(place.iterdir())
    place.chmod(0o700)
    (place / "__pycache__").mkdir(mode=0o700)
    (place / "__pycache__").chmod(0o777)
    assert value() == 42
    assert not list((place / "__pycache__").iterdir())


@pytest.mark.parametrize("why", ["nowhere", "a file", "no home", "cannot be made"])
def test_without_a_folder_nothing_is_kept(
    why: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "nowhere":
        monkeypatch.setenv(_module.FOLDER, "")
    elif why == "a file":
        place.write_text("")
    elif why == "no home":
        monkeypatch.delenv(_module.FOLDER)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError))
    assert _module.folder() is None
    assert value() == 42


def test_the_users_cache_folder_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(_module.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _module.folder() == tmp_path / "xdg" / "torch_ntk"


SCRIPT = """
import torch
from torch_ntk import mlp_kernels
print(mlp_kernels(torch.linspace(-1, 1, 12).reshape(3, 4), depth=3).ntk.flatten().tolist())
"""


def test_two_processes_at_once_without_a_compiler(tmp_path: Path) -> None:
    """An empty PATH has no C++ compiler, and both write into one new folder."""
    environment = {**os.environ, "PATH": "", _module.FOLDER: str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    one, two = (process.communicate(timeout=300)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert one == two
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    assert eval(one) == mlp_kernels(x, depth=3).ntk.flatten().tolist()


def test_threads_of_the_caller_may_call_at_once() -> None:
    x = torch.randn(6, 2, 6, 5)
    kernel, wanted, found = CNTK(3, pooling="gap"), CNTK(3, pooling="gap")(x), []
    threads = [threading.Thread(target=lambda: found.append(kernel(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(k, wanted) for k in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_may_call() -> None:
    x = torch.randn(3, 2, 4, 4)
    wanted = CNTK(3, pooling="gap")(x)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(CNTK(3, pooling="gap")(x), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_threads_as_torch_has(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    seen, done = set(), []
    barrier = threading.Barrier(count, timeout=30)

    def work(begin: int, end: int) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            barrier.wait()
        done.extend(range(begin, end))

    _threads.in_threads(work, 100)
    assert sorted(done) == list(range(100))
    assert len(seen) == count


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def work(begin: int, _: int) -> None:
        if begin:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _threads.in_threads(work, 100)


def deep_mlp(depth: int) -> nn.Module:
    hidden = [layer for _ in range(depth - 2) for layer in (dense(5, 5), nn.ReLU())]
    return nn.Sequential(dense(5, 5), nn.ReLU(), *hidden, dense(5, 1))


@pytest.mark.parametrize("kind", ["gap", "flatten", "vectors"])
def test_depth_adds_no_code(kind: str) -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    sources = []
    for depth in (4, 21):
        with evaluation_mode(x, None, None):
            if kind == "vectors":
                program = read(deep_mlp(depth), x[0, 0], None, x.dtype)
            else:
                program = CNTK(depth, pooling=kind).program(x, None)
            parts = fused.partition(program, plan(program), double=True)
        assert parts.regions
        form = Form(plan(program).distance, True)
        sources.append(
            {
                source
                for r in parts.regions
                for source in code(r.layout, Assembly(program, r, form).passes, form.double).sources
            }
        )
    assert sources[0] == sources[1]


def test_what_is_fused_is_explained() -> None:
    x = torch.randn(2, 3, 30, 30)
    pools = [nn.AvgPool2d(2), conv(4, 4, padding=1), nn.ReLU(), nn.AvgPool2d(9, 1, 4)]
    end = [nn.Flatten(), dense(4 * 14 * 14, 4), nn.ReLU()]
    net = nn.Sequential(conv(3, 4), nn.Tanh(), *pools, *end)
    found = analytic_explain(net, x)
    assert [(s.operation, s.loop) for s in found.steps] == [
        ("Affine", 1), ("Activation", 1), ("Pool", 1), ("Affine", 2), ("Activation", 2),
        ("Pool", None), ("Flatten", None), ("Affine", None), ("Activation", None),
    ]  # fmt: skip
    assert not found.fused
    for reason in ("windows", "no fused form", "vectors, in a network with averages"):
        assert reason in str(found)
    assert analytic_explain(nn.Sequential(dense(3, 4), nn.ReLU(), dense(4, 1)), x[:, :, 0, 0]).fused
    assert CNTK(3).explain(x).steps[0].loop == 1
    wanting = CNTK(3).explain(x.requires_grad_())
    assert not wanting.fused
    assert "derivatives" in wanting.steps[0].how
