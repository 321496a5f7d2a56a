"""The folder of a store: its manifest, the samples, and the tiles."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from .._checks import value_error
from ..memory import ranges, size_in_words
from ._chunks import Chunks, DamagedError, read_json
from ._grid import Grid, Tile
from ._manifest import About, Manifest, manifest_from
from ._packages import package
from ._sources import Source

_MANIFEST = "manifest.json"
_FORGOTTEN = 3600  # seconds after which no process still writes a partial chunk


class Folder:
    """The folder of a store that exists.

    `manifest.json` is the manifest; `x1` and `x2` are copies of the samples, so that every machine
    that sees the folder has them; `kernel` (or `features`) holds the tiles. The copies and the
    tiles are Zarr arrays.

    Args:
        path: The folder.
        first: If given, the store is read as the kernel of its first `first` samples only. This
            needs a kernel of one set of samples.

    Raises:
        ValueError: There is no store, or it is not one that this package has made.
    """

    def __init__(self, path: Path, first: int | None = None) -> None:
        self.path, self.first = path, first
        if not (path / _MANIFEST).is_file():
            what = "which does not exist" if not path.exists() else f"which has no {_MANIFEST}"
            raise value_error("store", "the folder of a store", f"{str(path)!r}, {what}")
        self.manifest = manifest_from(read_json(path / _MANIFEST))
        self.grid: Grid = self.manifest.grid
        if first is not None:
            self.grid = replace(self.grid, shape=(first, first))
        self._chunks = _arrays(path, self.manifest)
        for array in self._chunks.values():
            array.check()

    @property
    def tiles(self) -> Chunks:
        """The array of tiles."""
        return self._chunks[self.manifest.kind]

    def samples(self, side: int, block: int) -> NDArray[Any]:
        """The samples of one row of tiles (`side` 0), or of one column of tiles (`side` 1)."""
        return self._read("x2" if side == 1 and self.manifest.x2 is not None else "x1", block)

    def _read(self, name: str, block: int) -> NDArray[Any]:
        try:
            return self._chunks[name].read(block)
        except (FileNotFoundError, DamagedError) as error:
            raise value_error(
                "store",
                "one whose samples are as they were written",
                f"{str(self.path)!r}, where block {block} of {name} is damaged: {error}",
                "Call compute_kernel with the same samples and labels again; it writes them again.",
            ) from error

    def labels(self) -> NDArray[Any] | None:
        """The labels or targets of the samples, if the caller gave any."""
        if self.manifest.labels is None:
            return None
        return self._read("labels", 0)[: self.first]

    def finished(self) -> Iterator[Tile]:
        """The tiles that have been written, without reading them."""
        root = self.tiles.path / "c"
        for row in _numbered(root):
            for j in _numbered(root / str(row)):
                if (row, j) in self.grid:
                    yield row, j

    def damaged_samples(self) -> Iterator[tuple[str, int]]:
        """Blocks of x1, x2 and the labels that are missing or not as they were written."""
        for name, array in self._chunks.items():
            if name == self.manifest.kind:
                continue
            for block in range(array.blocks):
                try:
                    array.read(block)
                except (FileNotFoundError, DamagedError):
                    yield name, block

    def repair_samples(self, x1: Source, x2: Source | None, labels: Source | None) -> None:
        """Write damaged or missing blocks of samples and labels again."""
        given = {"x1": x1, "x2": x2, "labels": labels}
        for name, block in self.damaged_samples():
            source, array = given[name], self._chunks[name]
            if source is None:  # the store has labels, but the caller did not pass them again
                continue
            size = source.shape[0] if name == "labels" else self.manifest.tile
            begin = block * size
            array.remove(block)
            array.write(source.rows(begin, min(begin + size, source.shape[0])), block)

    def remove_forgotten(self) -> None:
        """Remove partial chunks that killed processes have left behind."""
        for part in self.tiles.path.glob("c/*/*.partial"):
            try:
                if time.time() - part.lstat().st_mtime > _FORGOTTEN:
                    part.unlink()
            except FileNotFoundError:
                continue


def create(
    path: Path,
    manifest: Manifest,
    x1: Source,
    x2: Source | None,
    labels: NDArray[Any] | None,
) -> Folder:
    """Make a store; if another process makes one meanwhile, that one is returned.

    The manifest has the hashes of the samples already.
    """
    parent = path.absolute().parent
    _remove_abandoned(parent, path.name)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    draft = parent / f".{path.name}.{uuid.uuid4().hex}.{owner}.part"
    draft.mkdir()
    try:
        package("zarr").create_group(store=str(draft), attributes={"made_by": "torch_ntk.scale"})
        arrays = _arrays(draft, manifest)
        for array in arrays.values():
            array.create()
        for name, source in (("x1", x1), ("x2", x2)):
            if source is not None:
                for block, (a, b) in enumerate(ranges(0, source.shape[0], manifest.tile)):
                    arrays[name].write(source.rows(a, b), block)
        if labels is not None:
            arrays["labels"].write(labels, 0)
        (draft / _MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        try:
            os.rename(draft, path)  # fails if the path is a folder that is not empty
        except OSError:
            if not (path / _MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Folder(path)


def about(source: Source, block: int) -> About:
    """Shape, dtype and hash of samples; all of them are read."""
    digest = hashlib.sha256()
    for a, b in ranges(0, source.shape[0], block):
        digest.update(np.ascontiguousarray(source.rows(a, b)).tobytes())
    return About(source.shape, source.dtype, digest.hexdigest())


def check_disk(path: Path, manifest: Manifest) -> None:
    """Raise `OSError` if the disk has no room for the tiles."""
    free = shutil.disk_usage(path.absolute().parent).free
    if manifest.bytes > free:
        rows = manifest.grid.shape[0]
        remedy = "another disk, or dtype=torch.float32"
        if manifest.tile > rows:
            remedy = f"a tile of at most {rows}, the number of samples: tiles are kept whole"
        raise OSError(
            f"The tiles of {str(path)!r} take {size_in_words(manifest.bytes)}, and "
            f"{size_in_words(free)} are free there. Choose {remedy}."
        )


def _arrays(path: Path, manifest: Manifest) -> dict[str, Chunks]:
    grid, tile = manifest.grid, manifest.tile
    tiles = Chunks(path / manifest.kind, grid.shape, grid.tile, manifest.dtype)
    found: dict[str, Chunks] = {manifest.kind: tiles}
    for name, known in (("x1", manifest.x1), ("x2", manifest.x2)):
        if known is not None:
            chunk = (tile, *known.shape[1:])
            found[name] = Chunks(path / name, known.shape, chunk, known.dtype)
    if manifest.labels is not None:
        known = manifest.labels
        found["labels"] = Chunks(path / "labels", known.shape, known.shape, known.dtype)
    return found


def _numbered(folder: Path) -> list[int]:
    """The names in a folder that are numbers, in ascending order."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries]
    except FileNotFoundError:
        return []
    return sorted(int(n) for n in names if re.fullmatch("0|[1-9][0-9]{0,9}", n))


def _remove_abandoned(parent: Path, name: str) -> None:
    """Remove drafts of stores whose processes, on this machine, have ended."""
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.{re.escape(name)}\..*\.{host}-(\d+)\.part")
    for entry in parent.iterdir():
        found = pattern.fullmatch(entry.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(entry, ignore_errors=True)
