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
from ._packages import package

_AHEAD = 2
"""How many tiles per worker the scheduler is given: one to compute, and the next one."""
_SHARE = 8  # new tiles are submitted when an eighth of the workers could take one


def on_cluster(
    client: Any, job: Job, tiles: Iterator[Tile], count: int
) -> Iterator[tuple[Tile, Outcome]]:
    """Compute tiles on the workers of a cluster, and yield each with its outcome when it finishes.

    The job is sent once to each worker as a plugin, also to workers that join or reconnect later.
    The scheduler reassigns the tiles of a lost worker to others. It is given only a few tiles at a
    time, so that its memory does not grow with their number: one in advance for each worker. Near
    the end none are queued in advance, because a queued tile stays with its worker while another
    worker may be idle. After an error, or when the caller stops, tiles that have not begun are not
    computed.
    """
    dask = package("distributed")
    from ._worker import SLOT, TileWorker, tile_on_worker

    name = f"torch_ntk-{uuid.uuid4().hex}"
    client.register_plugin(TileWorker(name, job), name=name)
    running: dict[Any, Tile] = {}
    workers, left = _Workers(client), count

    def submit() -> list[Any]:
        """Submit further tiles if there is room for some, and return their futures."""
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
                    f"{running[future]}. The usual cause is that memory ran out: use a smaller "
                    "tile in a new store, or fewer workers on a machine. Finished tiles stay; "
                    "call again."
                ) from error
            yield running.pop(future), outcome
            finished.update(submit())
    finally:
        client.cancel(list(running))
        client.unregister_worker_plugin(name)


class _Workers:
    """Counts the workers of a cluster; the scheduler is asked at most once a second."""

    def __init__(self, client: Any) -> None:
        self._client, self._count, self._asked = client, 1, -math.inf

    def count(self) -> int:
        """The number of workers, at least 1."""
        if time.monotonic() - self._asked > 1:
            self._count = max(1, len(self._client.ncores()))
            self._asked = time.monotonic()
        return self._count
