"""What `import torch_ntk` loads, and what the package gives when it is asked for more."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import torch_ntk

# In one fresh process: what each line loads that neither `import torch` nor a line before it did.
LINES = (
    "import torch_ntk",
    "from torch_ntk import MLP, NTKLinear, metrics, predict",
    "from torch_ntk import NTKOperator, analytic_ntk, empirical_ntk, linearize, verify",
)
CHILD = """
import json, sys, torch
loaded = []
for line in sys.argv[1:]:
    before = set(sys.modules)
    exec(line)
    loaded.append(sorted(set(sys.modules) - before))
print(json.dumps(loaded))
"""
HEAVY = (
    *("torch._dynamo", "torch._inductor", "sympy"),
    *("scipy", "sklearn", "pandas", "matplotlib", "tqdm"),
    *("lightning", "tensorboard", "torchvision", "safetensors", "gpytorch", "transformers"),
)


def test_what_is_heavy_is_loaded_when_it_is_used() -> None:
    command = [sys.executable, "-c", CHILD, *LINES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    package, *light = json.loads(done.stdout)
    assert package == ["torch_ntk", "torch_ntk._version"]
    assert "torch_ntk.nn" in light[0]
    assert "torch_ntk.linearize" in light[1]
    assert [m for m in light[0] if any(f"{m}.".startswith(f"{h}.") for h in HEAVY)] == []
    slow = [h for h in HEAVY if h != "tqdm"]  # progress bars are light
    assert [m for m in light[1] if any(f"{m}.".startswith(f"{h}.") for h in slow)] == []


def test_public_names_are_those_of_their_folders() -> None:
    """What type checkers read, what is listed, and what is found at run time agree."""
    tree = ast.parse(Path(torch_ntk.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert set(seen) == set(torch_ntk.__all__)
    assert set(torch_ntk.__all__) <= set(dir(torch_ntk))
    for name, folder in seen.items():
        home = import_module("torch_ntk" if folder is None else f"torch_ntk.{folder}")
        assert getattr(torch_ntk, name) is getattr(home, name), name


def test_folders_are_attributes() -> None:
    assert torch_ntk.nn is import_module("torch_ntk.nn")
    assert torch_ntk.callbacks is import_module("torch_ntk.callbacks")
    assert {"nn", "callbacks", "plotting"} <= set(dir(torch_ntk))


def test_a_function_is_not_replaced_by_the_folder_of_its_name() -> None:
    code = "import torch_ntk.linearize, torch_ntk; print(torch_ntk.linearize.__name__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["linearize"]  # a module's name would be torch_ntk.linearize


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'torch_ntk' has no attribute 'ntk_linear'"):
        torch_ntk.ntk_linear  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'ntk_linear' from 'torch_ntk'"):
        from torch_ntk import ntk_linear  # noqa: F401
