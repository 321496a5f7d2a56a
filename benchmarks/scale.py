"""What stores of kernels cost beside the kernels, and what large ones cost.

    python benchmarks/scale.py [--quick]

Overhead is the time of `compute_kernel` over that of the same calls of the kernel in a loop, by
turns: with all threads, and with one, where threads do not wait for each other and what is left is
that of store and scheduler. What a job costs beside its tiles is measured with small ones. Memory
and disk are those of a fully connected kernel of 20,000 samples, in a process of its own. Workers
are compared with one worker of the same number of threads. A cluster exists only while it is timed:
one that waits takes 4 to 8 % of a core. For many workers the cluster is simulated: scheduler,
workers and tasks are Dask's, and a tile is a sleep. Seconds per entry are read from
`benchmarks/analytic.json`. Prints the figures and, without `--quick`, writes
`benchmarks/scale.json` and the measured part of `docs/scale.md`; eight minutes on two cores. Run it
on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import HERE, environment, peak_memory, read_json, worker, write_json
from common import seconds as seconds_of
from scale_report import costs, in_words, report

SCRIPT = Path(__file__).resolve()
SIMULATED = (1, 8, 64, 512)


def _kernel() -> Any:
    from torch_ntk import CNTK

    return CNTK(11)


def _tile(kernel: Any, seconds: float) -> int:
    """Images of a tile that takes at least so long."""
    size = 8
    while size < 1024:
        x = _images(2 * size)
        kernel(x[:size], x[size:])
        if seconds_of(lambda x=x, n=size: kernel(x[:n], x[n:])) > seconds:
            break
        size = 8 * (3 * size // 16 + 1)
    return size


def _images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _cluster(workers: int, threads: int) -> Iterator[Any]:
    """A client of workers of this machine."""
    from distributed import Client, LocalCluster

    given = {"n_workers": workers, "threads_per_worker": threads, "dashboard_address": ":0"}
    with LocalCluster(**given) as cluster, Client(cluster) as client:
        yield client


def _stored(kernel: Any, x: torch.Tensor, tile: int, client: Any) -> float:
    """Seconds of a kernel into a store, without the first time, in which code is loaded."""
    from torch_ntk.scale import compute_kernel

    def run(n: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            given = {"store": f"{folder}/k", "tile": tile, "client": client, "progress": False}
            compute_kernel(kernel, x[:n], **given)

    run(2 * tile)
    return seconds_of(lambda: run(len(x)))


def _in_loop(kernel: Any, x: torch.Tensor, tile: int) -> int:
    """The calls of the kernel that a store's tiles are; returns how many."""
    parts = x.split(tile)
    for i, a in enumerate(parts):
        kernel(a)
        for b in parts[i + 1 :]:
            kernel(a, b)
    return len(parts) * (len(parts) + 1) // 2


def overhead(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the tiles in a loop, and in a store, here and on one worker."""
    torch.set_num_threads(job["threads"])
    kernel = _kernel()
    tile = _tile(kernel, job["tile_seconds"])
    x = _images(job["rows"] * tile)

    def there() -> float:
        with _cluster(1, torch.get_num_threads()) as client:
            return _stored(kernel, x, tile, client)

    tiles = _in_loop(kernel, x, tile)
    turns = [
        (seconds_of(lambda: _in_loop(kernel, x, tile)), _stored(kernel, x, tile, None), there())
        for _ in range(job["turns"])
    ]
    bare, here, worker = (min(each) for each in zip(*turns, strict=True))
    found = {"threads": job["threads"], "tiles": tiles}
    return found | {"bare": bare, "here": here, "worker": worker}


def fixed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a worker's first job, of another one, and of that one again; the tiles are small.

    What the same calls take in a loop is `bare`.
    """
    from torch_ntk.scale import compute_kernel

    torch.set_num_threads(1)
    kernel, tile = _kernel(), 8
    x = _images(job["rows"] * tile)
    tiles = _in_loop(kernel, x, tile)
    turns = []
    for _ in range(job["turns"]):
        seconds = [seconds_of(lambda: _in_loop(kernel, x, tile))]
        with _cluster(1, 1) as client, tempfile.TemporaryDirectory() as folder:
            given: dict[str, Any] = {"tile": tile, "client": client, "progress": False}
            for name in ("first", "other", "other"):
                store = f"{folder}/{name}"
                run = functools.partial(compute_kernel, kernel, x, store=store, **given)
                seconds.append(seconds_of(run))
        turns.append(seconds)
    bare, first, other, again = (min(each) for each in zip(*turns, strict=True))
    return {"tiles": tiles, "bare": bare, "first": first, "other": other, "again": again}


def workers(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one kernel on one and on several workers of one thread each."""
    kernel = _kernel()
    tile = _tile(kernel, job["tile_seconds"])
    x = _images(job["rows"] * tile)
    turns = []
    for _ in range(job["turns"]):
        found = []
        for count in job["workers"]:
            with _cluster(count, 1) as client:
                found.append(_stored(kernel, x, tile, client))
        turns.append(found)
    return {"workers": job["workers"], "seconds": [min(e) for e in zip(*turns, strict=True)]}


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a process that computes a fully connected kernel; and how long it takes."""
    from torch_ntk.command._kernels import preset
    from torch_ntk.scale import compute_kernel

    x = torch.randn(job["n"], 784, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(dir=job.get("folder")) as folder:
        given = {"store": f"{folder}/k", "tile": job["tile"], "progress": False}
        found: list[Any] = []
        seconds = seconds_of(lambda: found.append(compute_kernel(preset("mlp-4"), x, **given)))
        store = found[0]
        read = seconds_of(store.verify)
        size = store.about["bytes"]
    peak = peak_memory()
    return {
        "n": job["n"],
        "tile": job["tile"],
        "peak": peak,
        "bytes": size,
        "seconds": seconds,
        "read": read,
    }


def simulate(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of tiles that sleep, on so many workers of a cluster in this process.

    Up to 64 are workers of Dask; of more, each of 64 has room for several tiles.
    """
    import dask
    from distributed import Client, LocalCluster

    from torch_ntk.scale import _cluster, _worker
    from torch_ntk.scale._job import Job

    logging.getLogger("distributed").setLevel(logging.ERROR)
    # In one process these would look at the threads of all workers a hundred times a second.
    settings = {
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
    }
    count, seconds = job["workers"], job["seconds"]
    slots = max(1, count // 64)

    def asleep(*_: Any) -> str:
        time.sleep(seconds)
        return "computed"

    async def setup(self: Any, worker: Any) -> None:
        await worker.set_resources(**{_worker.SLOT: slots})

    with (
        mock.patch.object(_worker, "run_tile", asleep),
        mock.patch.object(_worker.TileWorker, "setup", setup),
        mock.patch.object(_cluster._Workers, "count", return_value=count),
        dask.config.set(settings),
        LocalCluster(
            n_workers=count // slots,
            threads_per_worker=slots,
            processes=False,
            dashboard_address=":0",
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        nothing = Job(print, Path("/none"), None, True)
        number = job["tiles"] * count
        tiles = ((i, 0) for i in range(number))
        elapsed = seconds_of(lambda: list(_cluster.on_cluster(client, nothing, tiles, number)))
    found = {"workers": count, "tile": seconds, "tiles": number, "elapsed": elapsed}
    efficiency = number * seconds / (count * elapsed)
    return found | {"efficiency": efficiency, "rate": number / elapsed}


def _measure(quick: bool) -> dict[str, Any]:
    turns, rows = (1, 2) if quick else (3, 4)
    result: dict[str, Any] = {"environment": environment()}
    given = {"tile_seconds": 0.05 if quick else 0.5, "rows": rows, "turns": turns}
    threads = torch.get_num_threads()
    result["overhead"] = worker(SCRIPT, {"what": "overhead", **given, "threads": threads})
    result["single"] = worker(SCRIPT, {"what": "overhead", **given, "threads": 1})
    result["fixed"] = worker(SCRIPT, {"what": "fixed", "rows": 4, "turns": turns})
    result["workers"] = worker(SCRIPT, {"what": "workers", **given, "workers": [1, 2]})
    sizes = [(1000, 256)] if quick else [(5000, 1024), (20000, 1024)]
    result["memory"] = [worker(SCRIPT, {"what": "memory", "n": n, "tile": t}) for n, t in sizes]
    simulated = [{"workers": n, "seconds": 8.0, "tiles": 4} for n in SIMULATED]
    if quick:
        simulated = [{"workers": 2, "seconds": 0.5, "tiles": 4}]
    result["simulated"] = [worker(SCRIPT, {"what": "simulate", **job}) for job in simulated]
    rate = {"workers": 2 if quick else 512, "seconds": 0.0, "tiles": 8}
    result["rate"] = worker(SCRIPT, {"what": "simulate", **rate})
    return result


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples, nothing is written")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        parts = (overhead, fixed, workers, memory, simulate)
        what = {part.__name__: part for part in parts}
        print(json.dumps(what[job["what"]](job)))
        return
    result = _measure(args.quick)
    print("\n".join(in_words(result)))
    if not args.quick:
        result["costs"] = costs(read_json(HERE / "analytic.json"))
        write_json(HERE / "scale.json", result)
        report(result)


if __name__ == "__main__":
    main()
