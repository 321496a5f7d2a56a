"""Turn a request for a kernel or for features into a store with all of its tiles."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .._checks import (
    check_bool,
    check_positive_int,
    type_error,
    value_error,
)
from ._cluster import on_cluster
from ._describe import describe as description
from ._folder import Folder, about, check_disk, create
from ._grid import Tile
from ._job import Job, Kernel, Outcome, run_tile
from ._manifest import Kind, Manifest, versions
from ._packages import package
from ._sources import Source, source_of

StorePath = str | os.PathLike[str]

_DTYPES = {torch.float64: "float64", torch.float32: "float32"}


@dataclass
class Request:
    """The arguments of `compute_kernel` or `compute_features`.

    Attributes:
        kind: Whether it asks for a kernel or for features.
        kernel: The function that computes a tile.
        x1, x2: The samples.
        columns: The number of features of a sample; 0 for a kernel.
        store, tile, dtype, device, name: The caller's arguments of these names.
        labels: The caller's labels as a NumPy array, or None.
    """

    kind: Kind
    kernel: Kernel
    x1: Source
    x2: Source | None
    columns: int
    store: Any
    tile: int
    dtype: torch.dtype
    device: Any
    name: str | None
    labels: Any

    def __post_init__(self) -> None:
        if not callable(self.kernel) or isinstance(self.kernel, type):
            raise type_error("kernel", "a function (a, b) -> [n1, n2]", self.kernel)
        if not isinstance(self.store, (str, os.PathLike)):
            raise type_error("store", "the path of a folder", self.store)
        check_positive_int("tile", self.tile)
        if self.dtype not in _DTYPES:
            raise value_error("dtype", "torch.float64 or torch.float32", repr(self.dtype))
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise type_error("name", "None or a string that is not empty", self.name)
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                expected = "None or the name of a device, such as 'cuda'"
                raise value_error("device", expected, self.device) from error
        if self.labels is not None:
            self.labels = _numbers(self.labels, self.x1.shape[0])

    @property
    def path(self) -> Path:
        """The store's folder as an absolute path, which means the same in every process."""
        return Path(self.store).absolute()

    def job(self) -> Job:
        """The job that computes tiles."""
        device = None if self.device is None else str(torch.device(self.device))
        # A copy is moved to the device: the caller's modules stay where they are.
        kernel = self.kernel if device is None else copy.deepcopy(self.kernel)
        return Job(kernel, self.path, device, _is_of_this_package(self.kernel))


def run(request: Request, client: Any, progress: bool) -> Folder:
    """Compute all tiles of a request that its store does not have yet."""
    package("zarr")  # if it is missing, the error says what to install
    check_bool("progress", progress)
    if client is not None and not hasattr(client, "register_plugin"):
        raise type_error("client", "None or a dask.distributed.Client", client)
    job = request.job()
    if client is None:
        _check_device(job.device)
    folder, first = _opened(request)
    grid = folder.grid
    tiles = grid.tiles(first)
    if client is None:
        outcomes = _in_this_process(job, tiles)
    else:
        outcomes = on_cluster(client, job, tiles, grid.count)
    done = 0
    with tqdm(
        total=grid.entries,
        desc=request.kind,
        unit="entry",
        unit_scale=True,
        smoothing=0,  # tiles differ in cost, so the time left is estimated from all of them
        disable=not progress,
        leave=False,
    ) as bar:
        try:
            for tile, outcome in outcomes:
                rows, columns = grid.size(*tile)
                if progress and outcome == "kept":  # not counted in the estimate of the time left
                    bar.initial += rows * columns
                bar.update(rows * columns)
                done += 1
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error} ({done} of {grid.count} tiles are in "
                f"{str(folder.path)!r} and stay; make room and call again)",
            ) from error
    return folder


def _check_device(device: str | None) -> None:
    """Raise `ValueError` if this process does not have the device."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # which one depends on the build
        reason = f"PyTorch says: {str(error).splitlines()[0]}"
        expected = "a device that this process has"
        raise value_error("device", expected, repr(device), reason) from error


def _in_this_process(job: Job, tiles: Iterator[Tile]) -> Iterator[tuple[Tile, Outcome]]:
    """Compute one tile after the other, each with all PyTorch threads, and yield its outcome."""
    job.move()
    for tile in tiles:
        yield tile, run_tile(job, tile, None)


def _opened(request: Request) -> tuple[Folder, int]:
    """The store of a request, made if necessary, and the row of tiles to begin with."""
    wanted = _manifest(request)
    path = request.path
    if not path.exists() or _is_empty(path):
        if not path.parent.is_dir():
            raise value_error("store", "a path in a folder that exists", repr(str(path)))
        check_disk(path, wanted)
        folder = create(path, wanted, request.x1, request.x2, request.labels)
    else:
        folder = Folder(path)
    differences = folder.manifest.differences(wanted)
    if differences:
        remedy = "Choose another path"
        if not any(folder.finished()):
            remedy += ", or remove the store: none of its tiles is finished"
        raise value_error(
            "store",
            "new, or of the same kernel, samples, tile, dtype and versions",
            f"{str(path)!r}, which differs",
            f"{'; '.join(differences)}. {remedy}.",
        )
    given = None if request.labels is None else source_of("labels", request.labels)
    folder.repair_samples(request.x1, request.x2, given)
    folder.remove_forgotten()
    # Several calls on one store begin at different rows. The caller's generators are not touched.
    first = random.SystemRandom().randrange(folder.grid.rows) if any(folder.finished()) else 0
    return folder, first


def _is_empty(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _manifest(request: Request) -> Manifest:
    x1, x2 = request.x1, request.x2
    given = request.labels
    return Manifest(
        kind=request.kind,
        kernel=description(request.kernel, request.name),
        x1=about(x1, request.tile),
        x2=None if x2 is None else about(x2, request.tile),
        labels=None if given is None else about(source_of("labels", given), len(given)),
        columns=request.columns or (x2 or x1).shape[0],
        tile=request.tile,
        dtype=_DTYPES[request.dtype],
        versions=versions(),
    )


def _numbers(labels: Any, samples: int) -> Any:
    """Labels as a NumPy array, one row for each sample."""
    found = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    array = np.asarray(found)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        came = f"{array.dtype} of shape {list(array.shape)}"
        raise type_error("labels", "numbers [N] or [N, O]", came)
    if len(array) != samples:
        raise value_error("labels", f"of {samples} samples", f"{len(array)} of them")
    return array


def _is_of_this_package(kernel: object) -> bool:
    """Whether a kernel is one of this package, which all take `x2=None` for `x2 = x1`."""
    while hasattr(kernel, "func"):  # functools.partial
        kernel = kernel.func
    of = getattr(kernel, "__module__", None) if hasattr(kernel, "__qualname__") else None
    return (of or type(kernel).__module__).partition(".")[0] == "torch_ntk"
