"""Copies of the tree, what is built from them, and environments into which it is installed.

Nothing here uses the network or writes into the tree that is tested: builds run in copies, with
the build tools of the running environment, and a fresh environment finds the heavy dependencies
through a path file instead of installing them again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = (
    "benchmarks",
    "callbacks",
    "docs",
    "examples",
    "tests",
    "torch_ntk",
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
)


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """The output of a command that must succeed, shielded from the caller's settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "MYPY"))}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_tree(target: Path) -> Path:
    """What a clone holds, with the link as a link."""
    target.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in TOP_LEVEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        python: Its interpreter.
        site_packages: Where it installs.
        outside: An empty folder, from which nothing of the tree can be seen.
    """

    python: Path
    site_packages: Path
    outside: Path

    def install(self, *what: str | Path) -> None:
        options = ("--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet")
        run([self.python, "-m", "pip", "install", *options, *what], self.outside)


def make_environment(target: Path) -> Environment:
    venv.create(target, with_pip=False, symlinks=os.name != "nt")
    paths = sysconfig.get_paths(vars={"base": str(target), "platbase": str(target)})
    site_packages = Path(paths["purelib"])
    # Folders in a path file are searched, but path files inside of them are not read: an
    # editable install in the running environment is invisible.
    heavy = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(heavy) + "\n")
    outside = target / "outside"
    outside.mkdir()
    return Environment(Path(paths["scripts"]) / "python", site_packages, outside)


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel that pip builds from a tree or a source distribution."""
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out)
    run([sys.executable, "-m", "pip", "wheel", *options, source], out)
    (path,) = out.glob("*.whl")
    return path
