"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import torch_ntk

PACKAGE = Path(torch_ntk.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    """Every module that holds an example, those of the callbacks included."""
    files = {*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").glob("*.py")}
    with_examples = [f for f in files if ">>> " in f.read_text(encoding="utf-8")]
    dotted = (".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in with_examples)
    return sorted(name.removesuffix(".__init__") for name in dotted)


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    if name.startswith("torch_ntk.scale"):
        pytest.importorskip("zarr")
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=FLAGS, report=False)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_entry_points_have_examples() -> None:
    """What a user calls first shows how."""
    for function in (torch_ntk.empirical_ntk, torch_ntk.linearize, torch_ntk.ntk_parameterize):
        assert ">>> " in (function.__doc__ or ""), function.__name__
