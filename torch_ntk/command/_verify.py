"""`torch-ntk verify`: read a whole store and check it."""

from __future__ import annotations

import argparse
import dataclasses

from ._options import add_output, add_store, answer

HELP = "read all tiles and samples of a store; the status is 1 if some are missing or damaged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    add_store(parser)
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Read the store, and print what is missing or damaged."""
    from ..scale import TileStore

    found = TileStore(chosen.store).verify(progress=not chosen.quiet)
    answer(chosen, dataclasses.asdict(found))
    return 0 if found.ok else 1
