"""Tiles on the workers of a Dask cluster."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ._grid import Tile
from ._job import Job, Outcome
from ._packages import distributed

_AHEAD = 2
"""Tiles for each worker that the scheduler knows: one that it computes, and the next one."""
_SHARE = 8  # tiles are given out when there is room for this part of the workers


def on_cluster(
    client: Any, job: Job, tiles: Iterator[Tile], count: int
) -> Iterator[tuple[Tile, Outcome]]:
    """What becomes of each tile, as they finish.

    The job travels once to each worker, also to those that join later or come back, as a plugin.
    The scheduler gives the tiles of a worker that was lost to others. It knows only some tiles
    ahead, so that its memory does not grow with their number: one that waits for each worker, and
    towards the end none, because it would wait where it is while another worker has nothing to do.
    After an error, or when the caller stops, tiles that have not begun are not computed.

    Args:
        client: Of the cluster.
        job: What computes a tile.
        tiles: Which.
        count: How many.
    """
    dask = distributed()
    from ._worker import SLOT, TileWorker, tile_on_worker

    name = f"torch_ntk-{uuid.uuid4().hex}"
    client.register_plugin(TileWorker(name, job), name=name)
    running: dict[Any, Tile] = {}
    workers, left = _Workers(client), count

    def submit() -> list[Any]:
        """Futures of further tiles, as soon as there is room for some."""
        nonlocal left
        known = workers.count()
        at_the_end = left <= _AHEAD * known
        room = (1 if at_the_end else _AHEAD) * known - len(running)
        enough = 1 if at_the_end else max(1, known // _SHARE)
        some = list(islice(tiles, room)) if room >= enough else []
        left -= len(some)
        keys = [f"ntk_tile-{name}-{i}-{j}" for i, j in some]
        names = [name] * len(some)
        options = {"key": keys, "pure": False, "resources": {SLOT: 1}}
        new = client.map(tile_on_worker, names, some, **options) if some else []
        running.update(zip(new, some, strict=True))
        return list(new)

    try:
        finished = dask.as_completed(submit())
        for future in finished:
            try:
                outcome = future.result()
            except dask.KilledWorker as error:
                raise RuntimeError(
                    f"Workers ended {error.allowed_failures + 1} times while they computed tile "
                    f"{running[future]}: mostly because memory ran out, which a smaller tile or "
                    "fewer workers on a machine would help. Other tiles stay; call again."
                ) from error
            yield running.pop(future), outcome
            finished.update(submit())
    finally:
        client.cancel(list(running))
        client.unregister_worker_plugin(name)


class _Workers:
    """How many workers a cluster has; the scheduler is asked at most once a second."""

    def __init__(self, client: Any) -> None:
        self._client, self._count, self._asked = client, 1, -math.inf

    def count(self) -> int:
        """At least 1."""
        if time.monotonic() - self._asked > 1:
            self._count = max(1, len(self._client.ncores()))
            self._asked = time.monotonic()
        return self._count
