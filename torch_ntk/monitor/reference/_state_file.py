"""States of tensors and plain values in safetensors files, without pickle."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..._checks import value_error

_KEY = "torch_ntk.state"


def save_state(state: Any, path: str | os.PathLike[str]) -> None:
    """Write a state into a file, completely or not at all.

    Args:
        state: Tensors, numbers, strings and None, in any nesting of dictionaries, lists and tuples.
        path: The path of the file.

    Raises:
        OSError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = _packed(state, tensors)
    write_whole(save(tensors, {_KEY: json.dumps(tree)}), Path(path))


def load_state(path: str | os.PathLike[str]) -> Any:
    """Read a state that `save_state` has written.

    Raises:
        ValueError: The file is damaged, or does not contain a state.
    """
    try:
        with safe_open(path, "pt") as file:
            tree = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _not_a_state(path, str(error)) from error
    if tree is None:
        raise _not_a_state(path, "a safetensors file without one")
    return _unpacked(json.loads(tree), tensors)


def write_whole(content: bytes, path: Path) -> None:
    """Write a file under a temporary name and rename it, so that it is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _not_a_state(path: str | os.PathLike[str], came: str) -> ValueError:
    """The error for a file that does not contain a state."""
    remedy = "Restore it, or begin without it."
    return value_error(str(path), "a file with the state of a monitor", came, remedy)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value in a form for JSON, in which containers and tensors are pairs of kind and content.

    The content of a tensor is a name, under which the tensor is added to `tensors`.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # safetensors refuses tensors that share memory, so that each is copied.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return ["tensor", name]
    if isinstance(value, dict):
        return ["dict", [[key, _packed(part, tensors)] for key, part in value.items()]]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_packed(part, tensors) for part in value]]
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value for which `_packed` has returned `value`."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(part, tensors) for key, part in content}
    parts = [_unpacked(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts
