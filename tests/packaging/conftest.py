"""Each distribution and each environment is made once for all tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from environments import Environment, build_wheel, copy_tree, make_environment, run


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository."""
    return copy_tree(tmp_path_factory.mktemp("repository") / "tree")


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the tree."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution built from the tree."""
    out = tmp_path_factory.mktemp("sdist")
    backend = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    run([sys.executable, "-c", backend], tree)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def wheel_from_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel_from_sdist"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel."""
    environment = make_environment(tmp_path_factory.mktemp("installed") / "venv")
    environment.install(wheel)
    return environment


@pytest.fixture(scope="session")
def editable_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another copy of the repository, for the editable install to point to."""
    return copy_tree(tmp_path_factory.mktemp("editable") / "tree")


@pytest.fixture(scope="session")
def editable(editable_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with an editable install."""
    environment = make_environment(tmp_path_factory.mktemp("editable_install") / "venv")
    environment.install("-e", editable_tree)
    return environment
