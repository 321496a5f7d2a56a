"""`TileStore`: read a matrix that is stored in tiles in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import value_error
from ..memory import budget, size_in_words
from ._chunks import DamagedError
from ._folder import Folder
from ._grid import Tile
from ._packages import package


@dataclass(frozen=True)
class Verified:
    """The result of `TileStore.verify`.

    Attributes:
        finished: The number of tiles that are in the store and whole.
        missing: The number of tiles that are not in the store.
        damaged: The tiles that are not what was written, or not finite, each as its row and column
            of tiles.
        samples: The blocks of samples (`"x1"`, `"x2"`) and `"labels"` in the store that are missing
            or damaged, each with its number. Calling `compute_kernel` with the samples and labels
            again repairs them.
    """

    finished: int
    missing: int
    damaged: tuple[Tile, ...]
    samples: tuple[tuple[str, int], ...]

    @property
    def ok(self) -> bool:
        """Whether the matrix is complete and nothing in the store is damaged."""
        return not (self.missing or self.damaged or self.samples)


class TileStore:
    """A matrix in tiles, in a folder.

    Args:
        path: The folder, which `compute_kernel` or `compute_features` has made.

    Raises:
        ImportError: The extra `scale` is not installed.
        ValueError: The folder is not a store, or its content does not fit its manifest.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        package("zarr")  # if it is missing, the error says what to install
        self._folder = Folder(Path(path).absolute())

    @property
    def path(self) -> Path:
        """The path of the folder that contains the store."""
        return self._folder.path

    @property
    def first(self) -> int | None:
        """The number of samples to which `KernelStore.leading` has cut the kernel, or None."""
        return self._folder.first

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        return self._folder.grid.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored entries."""
        found: torch.dtype = getattr(torch, self._folder.manifest.dtype)
        return found

    @property
    def tile(self) -> int:
        """The number of samples along a side of a tile."""
        return self._folder.manifest.tile

    @property
    def total(self) -> int:
        """The number of tiles of the complete matrix."""
        return self._folder.grid.count

    @property
    def finished(self) -> int:
        """The number of tiles that have been written."""
        return sum(1 for _ in self._folder.finished())

    @property
    def complete(self) -> bool:
        """Whether all tiles have been written. Their content is checked by `verify` only."""
        return self.finished == self.total

    @property
    def labels(self) -> NDArray[Any] | None:
        """Labels or targets of the samples x1, if any were given."""
        return self._folder.labels()

    @property
    def about(self) -> dict[str, Any]:
        """The manifest as plain values: kernel, samples, tile size, dtype and versions."""
        manifest = self._folder.manifest
        found: dict[str, Any]
        found = {"kind": manifest.kind, "kernel": manifest.kernel, "versions": manifest.versions}
        for name in ("x1", "x2", "labels"):
            known = getattr(manifest, name)
            found[name] = None if known is None else vars(known)
        return found | {"tile": manifest.tile, "dtype": manifest.dtype, "bytes": manifest.bytes}

    def __repr__(self) -> str:
        (rows, columns), finished, total = self.shape, self.finished, self.total
        state = "complete" if finished == total else f"{finished} of {total} tiles"
        return f"{type(self).__name__}({str(self.path)!r}, {rows}×{columns}, {state})"

    def verify(self, *, progress: bool = False) -> Verified:
        """Read every tile, and check that its checksum is right and its entries are finite.

        The samples and labels in the store are read and checked too.

        Args:
            progress: Whether to show a progress bar.
        """
        damaged = []
        there = sorted(self._folder.finished())
        for tile in tqdm(there, desc="verify", unit="tile", disable=not progress, leave=False):
            try:
                if not np.isfinite(self._folder.tiles.read(*tile)).all():
                    damaged.append(tile)
            except (DamagedError, FileNotFoundError):
                damaged.append(tile)
        missing = self.total - len(there)
        samples = tuple(self._folder.damaged_samples())
        return Verified(len(there) - len(damaged), missing, tuple(damaged), samples)

    @property
    def array(self) -> Any:
        """The matrix as a Dask array with a chunk for each tile, which is read when it is used.

        A symmetric kernel is complete: the tiles below the diagonal are read transposed.

        Raises:
            ValueError: Tiles are missing.
        """
        self._check_complete()
        dtype, chunks = self._folder.manifest.dtype, self._folder.grid.chunks()
        return package("dask.array").map_blocks(
            Reader(self.path, self._folder.first),
            chunks=chunks,
            dtype=dtype,
            meta=np.empty((0, 0), dtype),
            token="ntk-tile",
        )

    def to_dense(self) -> Tensor:
        """The matrix as a tensor.

        Raises:
            ValueError: It does not fit in memory, or tiles are missing or damaged.
        """
        self._check_complete()
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        free = budget(torch.device("cpu"))
        if size > free:
            raise value_error(
                "store",
                f"a matrix that fits in the {size_in_words(free)} that may be used",
                f"one of {size_in_words(size)}",
                "Use its Dask array, store.array, or store.solve and store.eigsh.",
            )
        out = np.empty(self.shape, self._folder.manifest.dtype)
        self.read_into(out)
        return torch.from_numpy(out)

    def read_into(self, out: NDArray[Any]) -> None:
        """Copy the matrix into an array of its shape."""
        for rows, columns, values in self.tiles():
            out[rows, columns] = values
            if self._folder.grid.symmetric and rows != columns:
                out[columns, rows] = values.T

    def diagonal(self) -> NDArray[Any]:
        """The diagonal of a symmetric kernel, in float64."""
        parts = [np.diagonal(self.read_tile(i, i)) for i in range(self._folder.grid.rows)]
        return np.concatenate(parts).astype(np.float64)

    def tiles(self) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
        """Rows, columns and entries of every tile; without those below a symmetric diagonal."""
        for tile in self._folder.grid.tiles():
            yield (*self._folder.grid.bounds(*tile), self.read_tile(*tile))

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v `[N2]` or `[N2, C]` in float64; every tile is read once."""
        columns = v.detach().double().cpu().reshape(len(v), -1).numpy()
        if len(columns) != self.shape[1]:
            raise value_error("v", f"of {self.shape[1]} rows", v)
        self._check_complete()
        out = np.zeros((self.shape[0], columns.shape[1]))
        for rows, others, values in self.tiles():
            tile = values.astype(np.float64, copy=False)
            out[rows] += tile @ columns[others]
            if self._folder.grid.symmetric and rows != others:
                out[others] += tile.T @ columns[rows]
        return torch.from_numpy(out).reshape(-1, *v.shape[1:])

    def read_tile(self, i: int, j: int) -> NDArray[Any]:
        """The entries of a tile, also below the diagonal of a symmetric kernel.

        Raises:
            ValueError: The tile is missing or damaged.
        """
        return read_tile(self._folder, i, j)

    def _check_complete(self) -> None:
        if not self.complete:
            raise value_error(
                "store",
                "complete",
                f"{str(self.path)!r} with {self.finished} of {self.total} tiles",
                "Call compute_kernel (or `torch-ntk kernel`) with this store again.",
            )


def read_tile(folder: Folder, i: int, j: int) -> NDArray[Any]:
    """The entries of a tile, also below the diagonal; `ValueError` if it is missing or damaged."""
    turned = folder.grid.symmetric and i > j
    rows, columns = folder.grid.size(i, j)
    try:
        found = folder.tiles.read(*((j, i) if turned else (i, j)))
    except (FileNotFoundError, DamagedError) as error:
        raise value_error(
            "store",
            "complete and as it was written",
            f"{str(folder.path)!r}, where tile {(i, j)} is missing or damaged: {error}",
            "Call compute_kernel (or `torch-ntk kernel`) with this store again, which computes it.",
        ) from error
    return (found.T if turned else found)[:rows, :columns]


class Reader:
    """Reads the blocks of a Dask array; it can be pickled and used in any process."""

    def __init__(self, path: Path, first: int | None) -> None:
        self._path, self._first = path, first
        self._folder: Folder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_folder": None}

    def __dask_tokenize__(self) -> str:
        return f"{self._path} {self._first} {self.folder.manifest.to_json()}"

    @property
    def folder(self) -> Folder:
        """The folder of the store."""
        if self._folder is None:
            self._folder = Folder(self._path, self._first)
        return self._folder

    def __call__(self, block_id: tuple[int, int] | None = None) -> NDArray[Any]:
        """A block. Dask first calls this without `block_id`, to learn the type of the result."""
        if block_id is None:
            return np.empty((0, 0), self.folder.manifest.dtype)
        return read_tile(self.folder, *block_id)
