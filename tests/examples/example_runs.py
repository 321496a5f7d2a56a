"""Examples in this process, where torch has been imported already."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


def run(script: Path, patch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A script to its end; warnings are errors here as everywhere."""
    patch.setattr("sys.argv", [str(script), *arguments])
    patch.syspath_prepend(script.parent)  # as for a program
    runpy.run_path(str(script), run_name="__main__")


def end_of(script: Path, patch: pytest.MonkeyPatch, *arguments: str) -> BaseException:
    """The error with which a script ends."""
    with pytest.raises((SystemExit, Exception)) as caught:
        run(script, patch, *arguments)
    return caught.value
