"""The part of a job that runs on a Dask worker. Importing this file needs `distributed`."""

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
"""A Dask resource of which every worker has one unit, so that it computes one tile at a time: a
tile uses all of the worker's threads, and a second one would only compete for them."""


class TileWorker(WorkerPlugin):
    """Gives each worker a copy of the job, found by its name, and the resource for one tile."""

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.job = name, job

    async def setup(self, worker: Any) -> None:
        """Give the worker its resource, and a device of its own."""
        keep_memory()
        if self.job.device == "cuda":
            self.job.device = f"cuda:{_device_of(worker)}"
        self.job.move()
        await worker.set_resources(**{SLOT: 1})


def _device_of(worker: Any) -> int:
    """The index of the device that a worker uses.

    It is 0 where every worker sees one device only, as under dask-cuda. Otherwise it is the number
    at the end of the worker's name, modulo the number of devices.

    Raises:
        ValueError: The worker sees several devices and its name has no number. All such workers
            would use the first device.
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

    glibc adapts the size up to which it keeps freed memory for later allocations. A Dask nanny
    starts its workers with MALLOC_TRIM_THRESHOLD_ set, which switches this off: each array above
    128 KiB is then mapped anew, page by page, and unmapped as soon as it is freed. A tile of a
    convolutional kernel has six times as many page faults that way. They take a tenth to a quarter
    of its time, and more with several threads, which wait for each other in the operating system.
    The thresholds set here are those that glibc would adapt to.
    """
    if sys.platform != "linux" or "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def tile_on_worker(name: str, tile: Tile) -> Outcome:
    """The task of a tile: `run_tile` with as many PyTorch threads as the worker has of Dask."""
    worker = get_worker()
    plugin = worker.plugins[name]
    assert isinstance(plugin, TileWorker)
    return run_tile(plugin.job, tile, worker.state.nthreads)
