"""`torch-ntk verify`: read every tile of a store."""

from __future__ import annotations

import argparse

from ._options import add_output, add_store, answer

HELP = "read every tile of a store; the status is 1 if one is missing or damaged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line may say."""
    add_store(parser)
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Read them."""
    from ..scale import TileStore

    found = TileStore(chosen.store).verify(progress=not chosen.quiet)
    damaged = [list(tile) for tile in found.damaged]
    answer(chosen, {"finished": found.finished, "missing": found.missing, "damaged": damaged})
    return 0 if found.ok else 1
