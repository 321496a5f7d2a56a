"""Cholesky's factor of a stored kernel: by LAPACK in memory, or by Dask in blocks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..empirical.operator._solve import Inner
from ..memory import budget
from ._packages import package
from ._tile_store import Reader, TileStore, read_tile

_ROWS = 24
"""About the largest number of rows of blocks of Dask's factor. The number of tasks of the
factorization grows with its cube."""


def fits_in_memory(store: TileStore) -> bool:
    """Whether a factor in float64 fits in memory; it overwrites the matrix."""
    return store.shape[0] ** 2 * 8 <= budget(torch.device("cpu"))


def lapack_factor(store: TileStore, shift: float) -> Inner | None:
    """A solver for K + shift by its factor in memory; None if it is numerically singular."""
    from scipy.linalg import cho_solve, lapack  # type: ignore[import-untyped]

    size = store.shape[0]
    matrix = np.empty((size, size))
    store.read_into(matrix)
    matrix[np.diag_indices(size)] += shift
    norm = float(np.abs(matrix).sum(axis=0).max())
    # LAPACK expects columns in memory order. The transpose is such a view, equal by symmetry.
    factor, failed = lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if failed:
        return None
    # Rounding can lift the last pivots of a singular matrix above zero.
    reciprocal, _ = lapack.dpocon(factor, norm, uplo="L")
    if reciprocal < size * np.finfo(np.float64).eps:
        return None

    def inner(y: Tensor, target: Tensor) -> Tensor:
        return torch.from_numpy(cho_solve((factor, True), y.numpy(), check_finite=False))

    return inner


def dask_factor(store: TileStore, shift: float, client: Any) -> Inner | None:
    """A solver for K + shift by Dask's blocked Cholesky; None if it is numerically singular.

    Dask needs blocks of one size: each is a square of several tiles, and the matrix is padded with
    an identity matrix to a multiple of that size.
    """
    da = package("dask.array")
    size, tile = store.shape[0], store.tile
    side = tile * max(1, -(-size // (tile * _ROWS)))
    count = -(-size // side)
    matrix = da.map_blocks(
        _Shifted(store, side, shift),
        chunks=((side,) * count,) * 2,
        dtype=float,
        meta=np.empty((0, 0)),
        token="ntk-block",
    )
    lower = client.persist(da.linalg.cholesky(matrix, lower=True))
    try:
        pivots = client.compute(da.diag(lower), sync=True)
    except np.linalg.LinAlgError:
        return None
    if pivots.min() ** 2 < size * np.finfo(np.float64).eps * pivots.max() ** 2:
        return None

    def inner(y: Tensor, target: Tensor) -> Tensor:
        padded = np.pad(y.numpy(), ((0, count * side - size), (0, 0)))
        right = da.from_array(padded, chunks=(side, padded.shape[1]))
        half = da.linalg.solve_triangular(lower, right, lower=True)
        found = client.compute(da.linalg.solve_triangular(lower.T, half), sync=True)
        return torch.from_numpy(np.ascontiguousarray(found[:size]))

    return inner


class _Shifted(Reader):
    """Reads blocks of K + shift, `side` rows of several tiles, padded with an identity matrix."""

    def __init__(self, store: TileStore, side: int, shift: float) -> None:
        super().__init__(store.path, store.first)
        self._side, self._shift = side, shift

    def __dask_tokenize__(self) -> str:
        return f"{super().__dask_tokenize__()} {self._side} {self._shift}"

    def __call__(self, block_id: tuple[int, int] | None = None) -> NDArray[Any]:
        """A block in float64."""
        if block_id is None:
            return np.empty((0, 0))
        grid, side = self.folder.grid, self._side
        each = side // grid.tile[0]
        first = [i * each for i in block_id]
        out = np.zeros((side, side))
        for i in range(first[0], min(first[0] + each, grid.rows)):
            for j in range(first[1], min(first[1] + each, grid.columns)):
                row, column = (i - first[0]) * grid.tile[0], (j - first[1]) * grid.tile[0]
                values = read_tile(self.folder, i, j)
                out[row : row + len(values), column : column + values.shape[1]] = values
        if block_id[0] == block_id[1]:
            inside = min(side, grid.shape[0] - block_id[0] * side)
            diagonal = np.einsum("ii->i", out)
            diagonal[:inside] += self._shift
            diagonal[inside:] = 1.0
        return out


@contextlib.contextmanager
def worker_here(folder: Path) -> Iterator[Any]:
    """A client of one worker in this process, which moves to disk what does not fit in memory.

    Its files are in a folder inside of `folder`.
    """
    import dask

    settings = {
        "distributed.worker.memory.target": 0.6,  # counts only the results that the worker holds
        # These look at the memory of the whole process, which is not the worker's alone.
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
    }
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".factor.") as scratch,
        dask.config.set(settings),
        package("distributed").LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            memory_limit=budget(torch.device("cpu")),
            local_directory=scratch,
            dashboard_address=":0",
        ) as cluster,
        package("distributed").Client(cluster) as client,
    ):
        yield client
