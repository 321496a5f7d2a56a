"""What a worker of a Dask cluster has of a job; imported where the package distributed is there."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch
from distributed import WorkerPlugin, get_worker

from .._checks import value_error
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
        """Give the worker its slot, and a device of its own.

        Raises:
            ValueError: It sees several devices, and nothing says which is its own.
        """
        keep_memory()
        if self.job.device == "cuda":
            self.job.device = f"cuda:{_device_of(worker)}"
        self.job.move()
        await worker.set_resources(**{SLOT: 1})


def _device_of(worker: Any) -> int:
    """Which device a worker uses: by its number among those of the cluster.

    Where every worker sees one device only, as under dask-cuda, that is the first.

    Raises:
        ValueError: It sees several, and has no number: all such workers would take the first.
    """
    count = torch.cuda.device_count()
    if count <= 1:
        return 0
    number = str(worker.name).rpartition("-")[2]
    if not number.isdigit():
        raise value_error(
            "device",
            "one that each worker can tell from those of others",
            f"'cuda' for the worker {str(worker.name)!r}, which sees {count} of them",
            "Start workers with a number at the end of their names (dask worker --name gpu-0), or "
            "with one device each (CUDA_VISIBLE_DEVICES, or dask_cuda.LocalCUDACluster()).",
        )
    return int(number) % count


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # as mallopt calls them (malloc.h)
_LARGEST = 2**25  # bytes; glibc takes no higher threshold


def keep_memory() -> None:
    """Let the process keep the memory of arrays that it frees, as it does outside of Dask.

    glibc learns from what is freed up to which size it pays to keep memory for what comes next. A
    nanny of Dask starts its workers with MALLOC_TRIM_THRESHOLD_, which ends the learning: each
    array above 128 KiB is then new memory, page by page from the system, and goes back at once.
    A tile of a convolutional kernel has six times as many page faults so, which take a tenth to a
    quarter of its time, and more with several threads, which wait for each other in the system.
    The thresholds set here are those that glibc would come to.
    """
    if sys.platform != "linux" or "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def tile_on_worker(name: str, tile: Tile) -> Outcome:
    """A task: `run_tile` with as many threads of PyTorch as the worker has of Dask."""
    worker = get_worker()
    plugin = worker.plugins[name]
    assert isinstance(plugin, TileWorker)
    return run_tile(plugin.job, tile, worker.state.nthreads)
