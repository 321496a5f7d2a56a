"""`torch-ntk info`: describe a store, and count its finished tiles."""

from __future__ import annotations

import argparse
from typing import Any

from ._options import add_output, add_store, answer

HELP = "describe a store: its kernel and samples, and how many tiles are finished"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    add_store(parser)
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Print the description."""
    from ..scale import TileStore

    store = TileStore(chosen.store)
    finished = store.finished
    found: dict[str, Any] = {
        "store": str(store.path),
        "shape": list(store.shape),
        "tiles": store.total,
        "finished": finished,
        "complete": finished == store.total,
        **store.about,
    }
    answer(chosen, found)
    return 0
