"""Tiles on workers: who computes which, with which device, and in what memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Named
from typing import Any

import pytest
import torch
from scale_kernels import quadratic, samples

pytest.importorskip("zarr")
pytest.importorskip("distributed")

import dask
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker

from torch_ntk.scale import _worker, compute_kernel
from torch_ntk.scale._cluster import on_cluster
from torch_ntk.scale._job import Job


@pytest.fixture
def client() -> Iterator[Client]:
    """Two workers in this process, which do not take each other's tasks."""
    given = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with (
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        LocalCluster(n_workers=2, **given) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as found,  # type: ignore[no-untyped-call]
    ):
        yield found


def test_no_tile_waits_behind_a_long_one_at_the_end(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tile ends when all others have: none of them may be in line on its worker."""
    tiles = [(0, j) for j in range(4)]
    others, lock, late = set(tiles[1:]), threading.Lock(), []
    done = threading.Event()

    def run_tile(job: Job, tile: tuple[int, int], threads: int) -> str:
        if tile == tiles[0]:
            late.append(not done.wait(20))
        with lock:
            others.discard(tile)
            if not others:
                done.set()
        return "computed"

    monkeypatch.setattr(_worker, "run_tile", run_tile)
    found = on_cluster(client, Job(print, Path("/none"), None, True), iter(tiles), len(tiles))
    assert sorted(tile for tile, _ in found) == tiles
    assert late == [False]


def test_a_worker_without_a_number_is_not_given_the_first_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    names = (0, 3, 5, "SLURMCluster-6", "SLURMCluster-6-1", "gpu-2")
    given = [_worker._device_of(Named(name=name)) for name in names]
    assert given == [0, 3, 1, 2, 1, 2]
    for name in ("tcp://10.0.0.1:4000", "alone"):
        with pytest.raises(ValueError, match=r"which sees 4 of them\. Start workers with a number"):
            _worker._device_of(Named(name=name))
    worker: Any = {"cls": Worker, "options": {"nthreads": 1, "dashboard_address": ":0"}}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        SpecCluster({"alone": worker}, scheduler, silence_logs=50) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as client,  # type: ignore[no-untyped-call]
        pytest.raises(ValueError, match="'cuda' for the worker 'alone'"),
    ):
        compute_kernel(
            quadratic,
            samples(6, 2),
            store=tmp_path / "k",
            device="cuda",
            client=client,
            progress=False,
        )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [_worker._device_of(Named(name=name)) for name in (3, "alone")] == [0, 0]


FREED = """
import resource
import numpy as np
from torch_ntk.scale._worker import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(2**18)  # 2 MiB, 512 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the C library glibc")
def test_workers_keep_the_memory_of_arrays_that_they_free() -> None:
    """As in a process that no nanny of Dask has started: no new pages for every array."""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", FREED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = (int(n) for n in done.stdout.split())
    assert before > 20 * 500
    assert after < 500
