"""`torch-ntk verify`: read all of a store."""

from __future__ import annotations

import argparse
import dataclasses

from ._options import add_output, add_store, answer

HELP = "read all tiles and samples of a store; the status is 1 if some are missing or damaged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line may say."""
    add_store(parser)
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Read them."""
    from ..scale import TileStore

    found = TileStore(chosen.store).verify(progress=not chosen.quiet)
    answer(chosen, dataclasses.asdict(found))
    return 0 if found.ok else 1
