"""Arguments that several subcommands have in common, and how subcommands print their results."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from ..info import write


class Terminated(BaseException):
    """Raised in the main thread on SIGTERM, so that open files and workers are closed."""


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the store."""
    parser.add_argument("--store", type=Path, required=True, help="the store's folder")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the form of the output."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the workers of a computation."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, help="compute in so many processes, which share the cores"
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a running Dask cluster")


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the samples."""
    parser.add_argument(
        "--data",
        required=True,
        help="an .npy or .safetensors file, a Zarr array, digits (scikit-learn's), or a dataset of "
        "torchvision below --data-root: fashion-mnist, mnist, cifar10",
    )
    parser.add_argument(
        "--split", choices=["train", "test"], help="the split of a torchvision dataset (train)"
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="the folder of torchvision"
    )
    parser.add_argument("--labels", type=Path, help="an .npy file with the samples' labels")
    parser.add_argument("--skip", type=int, default=0, help="samples to leave out at the start")
    parser.add_argument("--n", type=int, help="how many samples (default: all)")
    parser.add_argument("--size", type=int, help="resize images to so many rows and columns")
    parser.add_argument(
        "--standardize",
        action="store_true",
        help="subtract the mean of all numbers, and divide by their standard deviation",
    )


@contextlib.contextmanager
def client(chosen: argparse.Namespace) -> Iterator[Any]:
    """The client that was asked for, or None for this process; prints its dashboard's address."""
    if chosen.workers is None and chosen.scheduler is None:
        yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(
            "--workers and --scheduler need Dask: pip install 'dask[array,distributed]'."
        ) from error
    with contextlib.ExitStack() as stack:
        if chosen.scheduler is None:
            where = stack.enter_context(_local(LocalCluster, chosen.workers))
        else:
            where = chosen.scheduler
        found = stack.enter_context(Client(where, timeout="30s"))  # type: ignore[no-untyped-call]
        sys.stderr.writelines(["dashboard: ", _dashboard(found, here=where), "\n"])
        yield found


def _dashboard(client: Any, here: Any) -> str:
    """The address of a cluster's dashboard, with a hint if this process cannot serve it."""
    hint = " (install bokeh to see it)"
    missing = not isinstance(here, str) and importlib.util.find_spec("bokeh") is None
    return f"{client.dashboard_link}{hint if missing else ''}"


def _local(cluster: Any, workers: int) -> Any:
    """A cluster of `workers` processes on this machine, each with its share of the cores."""
    import psutil

    if workers < 1:
        raise ValueError(f"--workers must be at least 1; got {workers}.")
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count()
    each = max(1, (cores or 1) // workers)
    # Dask would log workers that end slowly, and tracebacks of errors that are raised here anyway.
    quiet = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with _signals_for_us_alone():
        return cluster(n_workers=workers, threads_per_worker=each, **quiet)


@contextlib.contextmanager
def _signals_for_us_alone() -> Iterator[None]:
    """Within it, started processes and their children are immune to SIGINT and SIGTERM.

    Ctrl-C reaches all processes of a terminal, and a batch system's SIGTERM all processes of a job.
    Workers would end one by one, with tracebacks, while this process waits for them; instead it
    ends them itself. Signals that arrive within the block are delivered at its end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    ours = {signal.SIGINT, signal.SIGTERM}
    resource_tracker.ensure_running()  # before the mask is set, because starting it resets the mask
    # New threads inherit the mask, and so do the processes that these threads start.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print a result: a line for each entry, or as JSON."""
    if chosen.json:
        text = json.dumps(found, ensure_ascii=False) + "\n"
    else:
        width = max(len(name) for name in found)
        text = "".join(f"{name:<{width}}  {_in_words(value)}\n" for name, value in found.items())
    write(text)


def _in_words(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
