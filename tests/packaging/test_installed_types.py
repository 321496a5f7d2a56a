"""Type checkers see the annotations of the installed package, callbacks included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Environment, copy_tree, make_environment, run

SNIPPET = """\
from torch_ntk import empirical_ntk
from torch_ntk.callbacks import NTKMonitor

reveal_type(NTKMonitor)
reveal_type(NTKMonitor().verdict)
reveal_type(empirical_ntk)
"""

# What the types of the snippet do not need; reading it would take most of the time.
SETTINGS = """\
[mypy]
[mypy-lightning.*,torchvision.*,scipy.*,sklearn.*,matplotlib.*,pandas.*,sympy.*,\
torch._dynamo.*,torch._inductor.*,torch._export.*,torch.export.*,torch.onnx.*,torch.distributed.*]
follow_imports = skip
[mypy-torch_ntk.*]
follow_imports = silent
"""

Mypy = Callable[[Environment, Path], str]


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Mypy:
    """Runs mypy on the snippet in a folder.

    What it has read of torch is kept for the next, which has the same settings wherever it runs.
    """
    folder = tmp_path_factory.mktemp("mypy")
    snippet, settings = folder / "snippet.py", folder / "mypy.ini"
    snippet.write_text(SNIPPET)
    settings.write_text(SETTINGS)

    def check(environment: Environment, cwd: Path) -> str:
        where = ("--python-executable", environment.python, "--cache-dir", folder / "cache")
        strict = ("--config-file", settings, "--strict")
        return run([sys.executable, "-m", "mypy", *strict, *where, snippet], cwd)

    return check


def assert_typed(output: str) -> None:
    revealed = [line for line in output.splitlines() if "Revealed type" in line]
    assert len(revealed) == 3, output
    assert "torch_ntk.callbacks._ntk_monitor.NTKMonitor" in revealed[0]
    assert "Verdict" in revealed[1]
    assert "torch._tensor.Tensor" in revealed[2]
    assert not any('is "Any"' in line for line in revealed)


@pytest.mark.slow
def test_a_wheel(mypy: Mypy, installed: Environment) -> None:
    assert_typed(mypy(installed, installed.outside))


@pytest.mark.slow
def test_a_wheel_from_the_repository_root(mypy: Mypy, installed: Environment, tree: Path) -> None:
    assert_typed(mypy(installed, tree))


@pytest.mark.slow
def test_an_editable_install_in_strict_mode(mypy: Mypy, tmp_path: Path) -> None:
    """The plain editable install is an import hook, which type checkers do not run."""
    environment = make_environment(tmp_path / "venv")
    strict = ("--config-settings", "editable_mode=strict")
    environment.install(*strict, "-e", copy_tree(tmp_path / "tree"))
    assert_typed(mypy(environment, environment.outside))


@pytest.mark.slow
def test_the_check_of_the_repository_reaches_the_callbacks(tmp_path: Path) -> None:
    """The link is followed: a mistake in `callbacks/` is reported, once."""
    tree = copy_tree(tmp_path / "tree")
    with (tree / "callbacks" / "_ntk_monitor.py").open("a") as file:
        file.write('\nmistake: int = "text"\n')
    # Of other packages nothing is read, which takes most of the time.
    options = ("--cache-dir", tmp_path / "cache", "--follow-imports", "skip")
    with pytest.raises(AssertionError) as caught:
        run([sys.executable, "-m", "mypy", *options], tree)
    found = [line for line in str(caught.value).splitlines() if "[assignment]" in line]
    assert len(found) == 1
    assert found[0].startswith("torch_ntk/callbacks/_ntk_monitor.py:")
