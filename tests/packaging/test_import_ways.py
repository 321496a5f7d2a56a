"""`torch_ntk.callbacks` is one package in each way that it can be reached.

The folder `callbacks/` of the repository is shipped through the link `torch_ntk/callbacks`. In an
editable install, in a wheel, and from the repository root it must be the same package, and never
a package `callbacks` of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from environments import Environment, run

PROBE = """
import json, pickle, sys
import torch_ntk.callbacks
from torch_ntk.callbacks import NTKMonitor

seen = {
    "package": torch_ntk.__file__,
    "callbacks": torch_ntk.callbacks.__file__,
    "module": NTKMonitor.__module__,
    "pickles": pickle.loads(pickle.dumps(NTKMonitor)) is NTKMonitor,
}
for name in ("callbacks", "callbacks._ntk_monitor"):
    try:
        __import__(name)
        seen[f"import {name}"] = "worked"
    except ImportError as error:
        seen[f"import {name}"] = f"{type(error).__name__}: {error}"
seen["copies"] = [n for n in sys.modules if n.rpartition(".")[2] == "_ntk_monitor"]
seen["left behind"] = [n for n in sys.modules if n.partition(".")[0] == "callbacks"]
print(json.dumps(seen))
"""
IMPORTS = ("import callbacks", "import callbacks._ntk_monitor")


def probe(environment: Environment, cwd: Path, package: Path) -> dict[str, Any]:
    """What one process sees; checks what must hold everywhere."""
    seen: dict[str, Any] = json.loads(run([environment.python, "-c", PROBE], cwd))
    assert Path(seen["package"]) == package / "__init__.py"
    assert Path(seen["callbacks"]) == package / "callbacks" / "__init__.py"
    assert seen["module"] == "torch_ntk.callbacks._ntk_monitor"
    assert seen["copies"] == ["torch_ntk.callbacks._ntk_monitor"]
    assert seen["pickles"] is True
    assert seen["left behind"] == []
    return seen


def test_an_editable_install(editable: Environment, editable_tree: Path) -> None:
    seen = probe(editable, editable.outside, editable_tree / "torch_ntk")
    assert all(seen[i].startswith("ModuleNotFoundError") for i in IMPORTS)


def test_a_wheel(installed: Environment) -> None:
    seen = probe(installed, installed.outside, installed.site_packages / "torch_ntk")
    assert all(seen[i].startswith("ModuleNotFoundError") for i in IMPORTS)
    packages = {p.name for p in installed.site_packages.iterdir() if p.is_dir()}
    assert packages - {"__pycache__"} == {"torch_ntk", f"{dist_info(installed)}"}


def dist_info(environment: Environment) -> str:
    (path,) = environment.site_packages.glob("torch_ntk-*.dist-info")
    return path.name


def test_a_wheel_from_the_repository_root(installed: Environment, tree: Path) -> None:
    """There the tree comes first on the path, and with it the folder under its own name."""
    seen = probe(installed, tree, tree / "torch_ntk")
    clear = "ImportError: Import this package as `torch_ntk.callbacks`, not as `callbacks`."
    assert all(seen[i] == clear for i in IMPORTS)


def test_an_editable_install_from_the_repository_root(
    editable: Environment, editable_tree: Path
) -> None:
    seen = probe(editable, editable_tree, editable_tree / "torch_ntk")
    assert all("not as `callbacks`" in seen[i] for i in IMPORTS)
