"""Files with the documents of trainings, in the folders of their runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DEFAULT = "ntk/"


def document_name(names: str = _DEFAULT) -> str:
    """The name of the file with a monitor's document: `ntk.json`, or `ntk-….json` if not `"ntk/"`.

    Args:
        names: What is put before the names of its numbers, which differs between the monitors of
            one run.
    """
    if names == _DEFAULT:
        return "ntk.json"
    slug = re.sub("[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}", names.rstrip("/_"))
    return f"ntk-{slug[:100]}.json"


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document. Whoever reads the file at the same time gets the previous document.

    Args:
        path: The file. Its folder is made if necessary.
        document: Plain values for JSON, without numbers that are not finite.

    Raises:
        OSError: The file cannot be written.
    """
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def find_documents(root: Path) -> dict[str, Path]:
    """The files of all documents below a folder by the name of the run, last written first.

    The name is the relative path of the run's folder, followed by the name of the file if the
    folder has several documents. Links that lead out of `root` are not followed.
    """
    top = root.resolve()
    found: list[tuple[float, str, Path]] = []
    for folder, _, files in os.walk(top):
        names = [f for f in files if f == "ntk.json" or re.fullmatch(r"ntk-\w+\.json", f)]
        for file in names:
            path = Path(folder, file)
            if not path.resolve().is_relative_to(top) or not path.is_file():
                continue
            run = path.parent.relative_to(top).as_posix()
            name = run if len(names) == 1 else f"{run}/{path.stem}"
            found.append((path.stat().st_mtime, name, path))
    return {name: path for _, name, path in sorted(found, key=lambda one: (-one[0], one[1]))}


def read_document(path: Path, name: str) -> dict[str, Any]:
    """Read a document from a file.

    Args:
        path: The file.
        name: The name of the run, which is set in the document.

    Raises:
        ValueError: The file does not contain a document.
        OSError: The file cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        from .._checks import value_error  # imported here, since it imports PyTorch

        raise value_error("path", "a document of a monitored training", f"the file {path}")
    return {**document, "name": name}
