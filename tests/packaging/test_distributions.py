"""What the wheel and the source distribution hold."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from environments import Environment, run
from packaging.requirements import Requirement

import torch_ntk


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def text(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(ending)]
        return archive.read(name).decode()


def modules(tree: Path) -> set[str]:
    """Every module and page of the package; `glob` does not follow the link, walked apart."""
    package = tree / "torch_ntk"
    own = {p.relative_to(tree).as_posix() for p in package.rglob("*.py") if p.is_file()}
    linked = {f"torch_ntk/callbacks/{p.name}" for p in (tree / "callbacks").glob("*.py")}
    static = (tree / "torch_ntk" / "tensorboard_plugin" / "static").iterdir()
    return own | linked | {p.relative_to(tree).as_posix() for p in static}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(text(wheel, ".dist-info/METADATA"))


def test_the_link_is_there_and_leads_to_the_folder(tree: Path) -> None:
    """Where links are not supported, git leaves a text file in its place."""
    link = tree / "torch_ntk" / "callbacks"
    assert link.is_dir(), "torch_ntk/callbacks is no folder: see CONTRIBUTING.md, 'The link'"
    assert link.resolve() == (tree / "callbacks").resolve()


def test_the_wheel_holds_every_module_and_nothing_else(tree: Path, wheel: Path) -> None:
    packed = {n for n in names(wheel) if not n.startswith("torch_ntk-")}
    assert packed == modules(tree) | {"torch_ntk/py.typed"}
    assert text(wheel, "/top_level.txt").split() == ["torch_ntk"]


def test_the_callbacks_in_it_are_the_real_files(tree: Path, wheel: Path) -> None:
    sources = sorted((tree / "callbacks").glob("*.py"))
    assert sources
    with zipfile.ZipFile(wheel) as archive:
        for source in sources:
            info = archive.getinfo(f"torch_ntk/callbacks/{source.name}")
            assert archive.read(info) == source.read_bytes()
            assert (info.external_attr >> 16) & 0o170000 in (0, 0o100000)  # no link


def test_the_entry_points(wheel: Path) -> None:
    parser = ConfigParser()
    parser.read_string(text(wheel, ".dist-info/entry_points.txt"))
    found = {group: dict(parser[group]) for group in parser.sections()}
    assert found == {
        "console_scripts": {"torch-ntk": "torch_ntk.command:main"},
        "tensorboard_plugins": {"torch_ntk": "torch_ntk.tensorboard_plugin:NTKPlugin"},
    }


def test_tensorboard_finds_the_plugin(installed: Environment) -> None:
    code = (
        "from tensorboard.default import get_dynamic_plugins\n"
        "plugins = {p.plugin_name: p for p in get_dynamic_plugins()}\n"
        "module = plugins['ntk'](base_plugin.TBContext(logdir='')).get_plugin_apps()\n"
        "print(plugins['ntk'].__module__, '/page.js' in module)"
    )
    code = f"from tensorboard.plugins import base_plugin\n{code}"
    said = run([installed.python, "-W", "ignore", "-c", code], installed.outside)
    assert said.split() == ["torch_ntk.tensorboard_plugin._plugin", "True"]


def test_the_record_names_only_this_package(wheel: Path) -> None:
    for line in text(wheel, ".dist-info/RECORD").splitlines():
        assert re.match(r"torch_ntk(-[\w.]+\.dist-info)?/", line), line


def test_the_sdist_makes_the_same_wheel(wheel: Path, wheel_from_sdist: Path) -> None:
    assert wheel.name == wheel_from_sdist.name
    assert names(wheel) == names(wheel_from_sdist)


def test_the_sdist_holds_files_and_no_links(tree: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(m.isfile() or m.isdir() for m in members)
    packed = {m.name.partition("/")[2] for m in members}
    told = {"LICENSE", "CHANGELOG.md", "README.md", "pyproject.toml", "setup.cfg"}
    assert modules(tree) | told | {"torch_ntk/py.typed"} <= packed
    assert not [name for name in packed if name.startswith(("tests/", "docs/", "callbacks/"))]


def test_an_index_would_take_both(wheel: Path, sdist: Path) -> None:
    """Twine reads what an index shows: the metadata, and the README as its page."""
    run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], wheel.parent)


def test_name_version_and_licence(metadata: Message, wheel: Path) -> None:
    assert metadata["Name"] == "torch_ntk"
    assert metadata["Version"] == torch_ntk.__version__
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Apache License" in text(wheel, "/LICENSE")


def test_dependencies_have_lower_bounds_and_nothing_more(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    main = {r.name for r in requirements if r.marker is None}
    assert {"torch", "lightning", "tensorboard", "numpy", "scipy", "scikit-learn"} <= main
    for requirement in requirements:
        assert requirement.url is None, requirement
        if 'extra == "peers"' in str(requirement.marker):
            continue  # what benchmarks compare with works in these versions only
        assert [s.operator for s in requirement.specifier] == [">="], requirement
