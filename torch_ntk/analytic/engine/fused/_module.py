"""Compilation of generated source code; compiled functions are stored on disk.

Numba keeps what it has compiled beside the source file of a function, so generated code needs one.
It is written to a folder of the user's own, under the hash of what it contains. The code that is
run is always the one that was generated in this process: the file only has to be there, with the
same content, for Numba to find what belongs to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import threading
import types
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER = "TORCH_NTK_CACHE_DIR"
"""The environment variable that says where to keep compiled loops; empty for nowhere."""

_compiling = threading.RLock()


def load(source: str) -> dict[str, Any]:
    """The functions that `source`, with `{cache}` in place of whether to keep them, defines.

    Args:
        source: Generated code; whatever it contains is run.
    """
    with _compiling:
        return _load(source)


@lru_cache(maxsize=64)
def _load(source: str) -> dict[str, Any]:
    import llvmlite  # type: ignore[import-untyped]
    import numba  # slow to import, and needed here only

    versions = f"# numba {numba.__version__}, llvmlite {llvmlite.__version__}\n"
    kept = versions + source.replace("{cache}", "True")
    path = _written(kept)
    if path is None:
        return _run(source.replace("{cache}", "False"), "<fused loop>")
    try:
        return _run(kept, str(path))
    except (OSError, RuntimeError):  # no place that Numba could keep it in
        return _run(source.replace("{cache}", "False"), "<fused loop>")


def _run(source: str, filename: str) -> dict[str, Any]:
    # Numba looks for the module of a function by its name.
    module = types.ModuleType("torch_ntk_loop_" + hashlib.sha256(source.encode()).hexdigest()[:16])
    module.__file__ = filename
    sys.modules[module.__name__] = module
    exec(compile(source, filename, "exec"), vars(module))
    return vars(module)


def folder() -> Path | None:
    """The folder for compiled loops, made if need be; None if there is no safe one."""
    given = os.environ.get(FOLDER)
    if given == "":
        return None
    try:
        if given is not None:
            path = Path(given).expanduser()
        else:
            base = os.environ.get("XDG_CACHE_HOME", "")
            root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
            path = root / "torch_ntk"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if _is_ours_alone(path) and os.access(path, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):  # no home, or nothing can be written there
        return None


def _is_ours_alone(path: Path) -> bool:
    """Return whether nobody else can write a path: Numba runs whatever is put there."""
    if not hasattr(os, "getuid"):
        return True  # profiles of Windows are private
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        found = path.stat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid == os.getuid() and not found.st_mode & others


def _written(source: str) -> Path | None:
    """Write a file with exactly this content, and return its path; None if that fails."""
    where = folder()
    if where is None:
        return None
    content = source.encode()
    path = where / f"loop_{hashlib.sha256(content).hexdigest()[:32]}.py"
    try:
        if not (path.is_file() and _is_ours_alone(path) and path.read_bytes() == content):
            _write(path, content)
        cached = where / "__pycache__"
        cached.mkdir(mode=0o700, exist_ok=True)
        return path if _is_ours_alone(cached) else None
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Write a file at once, with a fixed time: Numba takes a later one for new content."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.utime(name, (0, 0))
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
