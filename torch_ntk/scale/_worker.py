"""What a worker of a Dask cluster has of a job; imported where the package distributed is there."""

from __future__ import annotations

from typing import Any

import torch
from distributed import WorkerPlugin, get_worker

from ._grid import Tile
from ._job import Job, Outcome, run_tile

SLOT = "torch_ntk_tile"
"""The resource of which every worker has one, so that it computes one tile at a time: a tile uses
all of the worker's threads, and another one beside it would only wait for them."""


class TileWorker(WorkerPlugin):
    """The job, and the slot for one tile.

    Args:
        name: By which tasks find it on their worker.
        job: What computes a tile; each worker has its own copy.
    """

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.job = name, job

    async def setup(self, worker: Any) -> None:
        """Give the worker its slot, and a device of its own."""
        if self.job.device == "cuda":
            self.job.device = f"cuda:{_device_of(worker)}"
        self.job.move()
        await worker.set_resources(**{SLOT: 1})


def _device_of(worker: Any) -> int:
    """Which device a worker uses: by its number among those of the cluster.

    Where every worker sees one device only, as under dask-cuda, that is the first.
    """
    count = torch.cuda.device_count()
    number = str(worker.name).rpartition("-")[2]
    return int(number) % count if count > 1 and number.isdigit() else 0


def tile_on_worker(name: str, tile: Tile) -> Outcome:
    """A task: `run_tile` with as many threads of PyTorch as the worker has of Dask."""
    worker = get_worker()
    plugin = worker.plugins[name]
    assert isinstance(plugin, TileWorker)
    return run_tile(plugin.job, tile, worker.state.nthreads)
