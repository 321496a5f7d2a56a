"""Tiles on the workers of a Dask cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ._grid import Tile
from ._job import Job, Outcome
from ._packages import distributed

_AHEAD = 3
"""Tiles for each worker that the scheduler knows: enough that none waits for the next one."""


def on_cluster(client: Any, job: Job, tiles: Iterator[Tile]) -> Iterator[tuple[Tile, Outcome]]:
    """What becomes of each tile, as they finish.

    The job travels once to each worker, also to those that join later or come back, as a plugin.
    The scheduler gives the tiles of a worker that was lost to others. It knows only some tiles
    ahead, so that its memory does not grow with their number. After an error, or when the caller
    stops, tiles that have not begun are not computed.

    Args:
        client: Of the cluster.
        job: What computes a tile.
        tiles: Which.
    """
    dask = distributed()
    from ._worker import SLOT, TileWorker, tile_on_worker

    name = f"torch_ntk-{uuid.uuid4().hex}"
    client.register_plugin(TileWorker(name, job), name=name)
    running: dict[Any, Tile] = {}

    def submit() -> list[Any]:
        """Futures of as many further tiles as there is room for."""
        room = _AHEAD * max(1, len(client.ncores())) - len(running)
        new = {
            client.submit(
                tile_on_worker,
                name,
                tile,
                key=f"ntk_tile-{name}-{tile[0]}-{tile[1]}",
                pure=False,
                resources={SLOT: 1},
            ): tile
            for tile in islice(tiles, max(0, room))
        }
        running.update(new)
        return list(new)

    try:
        finished = dask.as_completed(submit())
        for future in finished:
            outcome = future.result()
            yield running.pop(future), outcome
            finished.update(submit())
    finally:
        client.cancel(list(running))
        client.unregister_worker_plugin(name)
