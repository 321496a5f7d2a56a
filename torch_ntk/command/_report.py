"""`torch-ntk report`: write the page of monitored trainings to a file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

HELP = "write the page of runs as one HTML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a run's folder, or one that holds runs"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path("report.html"),
        help="the file to write (default: %(default)s)",
    )


def run(chosen: argparse.Namespace) -> int:
    """Write the page."""
    from ..tensorboard_plugin import find_documents, read_document

    paths: dict[Path, None] = {}  # used as an ordered set
    for folder in chosen.runs:
        found = find_documents(folder).values()
        if not found:
            raise ValueError(
                f"{folder} holds no monitored run. Train with NTKMonitor() and a "
                "TensorBoardLogger, which writes ntk.json into the folder of the run."
            )
        paths |= dict.fromkeys(found)
    names = _names(list(paths))
    documents = [read_document(path, name) for path, name in zip(paths, names, strict=True)]
    # Imported last, because this loads PyTorch, which takes seconds.
    from ..monitor import write_report

    write_report(chosen.output, documents)
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each run: the part of its folder's path in which the runs differ.

    A single run is named by the last two parts of its folder, because loggers call the last one
    `version_0`, which alone says nothing.
    """
    folders = [path.parent for path in paths]
    common = Path(os.path.commonpath(folders))
    if common in folders:
        common = common.parent.parent
    # Several monitors of one run have documents in one folder.
    places = [p.with_suffix("") if folders.count(p.parent) > 1 else p.parent for p in paths]
    return [place.relative_to(common).as_posix() for place in places]
