"""`torch-ntk info`: what a store is of, and how far it is."""

from __future__ import annotations

import argparse
from typing import Any

from ._options import add_output, add_store, answer

HELP = "say what a store is of, and how far it is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line may say."""
    add_store(parser)
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Say it."""
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
