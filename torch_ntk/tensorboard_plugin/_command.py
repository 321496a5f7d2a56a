"""`torch-ntk`, the console command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ._files import find_documents, read_document


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `torch-ntk`.

    Args:
        arguments: Of the command line; None takes those of the process.

    Returns:
        The status with which the process ends: 0, or 1 with a line on the standard error.
    """
    parser = argparse.ArgumentParser("torch-ntk", description="Pages of monitored trainings.")
    commands = parser.add_subparsers(dest="command", required=True)
    words = "write the page of runs as one HTML file"
    report = commands.add_parser("report", help=words, description=f"{words.capitalize()}.")
    report.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a run's folder, or one that holds runs"
    )
    report.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path("report.html"),
        help="the file to write (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    try:
        return _report(chosen.runs, chosen.output)
    except (OSError, ValueError) as error:
        return _fail(str(error))


def _report(folders: Sequence[Path], output: Path) -> int:
    paths: dict[Path, None] = {}  # in their order, each once
    for folder in folders:
        found = find_documents(folder).values()
        if not found:
            return _fail(
                f"{folder} holds no monitored run. Train with NTKMonitor() and a "
                "TensorBoardLogger, which writes ntk.json into the folder of the run."
            )
        paths |= dict.fromkeys(found)
    names = _names(list(paths))
    documents = [read_document(path, name) for path, name in zip(paths, names, strict=True)]
    # After all is read: this loads PyTorch, which takes seconds.
    from ..monitor import write_report

    write_report(output, documents)
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """The runs' folders as far as they differ; of a single one, what its last two are called.

    Loggers call the last one `version_0`, which alone says nothing.
    """
    folders = [path.parent for path in paths]
    common = Path(os.path.commonpath(folders))
    if common in folders:
        common = common.parent.parent
    # Several monitors of one run have documents in one folder.
    places = [p.with_suffix("") if folders.count(p.parent) > 1 else p.parent for p in paths]
    return [place.relative_to(common).as_posix() for place in places]


def _fail(text: str) -> int:
    sys.stderr.writelines(["torch-ntk: ", text, "\n"])
    return 1
