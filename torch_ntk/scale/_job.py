"""Compute one tile, unless it is in the store already."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._checks import describe, value_error
from ..memory import is_out_of_memory
from ._chunks import DamagedError
from ._folder import Folder
from ._grid import Tile

Kernel = Callable[..., Any]
Outcome = Literal["kept", "computed", "computed again"]

_LOOSE_SYMMETRY = 1e-6  # asymmetry relative to the largest entry that float32 rounding explains
_NAMED = 5  # at most so many samples are named in a message
_OTHERS_STAY = "This tile was not written; finished ones stay."


@dataclass
class Job:
    """Everything that a process needs to compute tiles; it can be pickled.

    Attributes:
        kernel: The kernel `(a, b) -> [n1, n2]`, or a function that computes the features of
            samples, `a -> [n, dim]`.
        path: The store's folder, an absolute path that is the same on every machine.
        device: The device to which samples are moved before the kernel gets them; None leaves them
            on the CPU.
        alone: Whether the kernel of one set of samples is called with a single argument. Kernels of
            this package allow it, and then compute only half of the pairs.
    """

    kernel: Kernel
    path: Path
    device: str | None
    alone: bool
    _folder: Folder | None = field(default=None, repr=False)
    _rows: tuple[int, Tensor] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_folder": None, "_rows": None}

    @property
    def folder(self) -> Folder:
        """The folder of the store."""
        if self._folder is None:
            self._folder = Folder(self.path)
        return self._folder

    def move(self) -> None:
        """Put the modules of the kernel onto the job's device."""
        if self.device is not None:
            for module in _modules(self.kernel):
                module.to(self.device)

    def ensure(self, tile: Tile) -> Outcome:
        """Make sure that a tile is in the store: keep it if it is whole, else compute and write it.

        Raises:
            ValueError: Entries are not finite, or the kernel does not return one number per pair.
            MemoryError: The computation does not fit in memory.
            OSError: The tile cannot be written.
        """
        tiles, outcome = self.folder.tiles, "computed"
        try:
            tiles.read(*tile)
            return "kept"
        except FileNotFoundError:
            pass
        except DamagedError:
            tiles.remove(*tile)
            outcome = "computed again"
        try:
            values = self.compute(tile)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                size = self.folder.manifest.tile
                advice = f"Out of memory in a tile of {size} samples: choose a smaller `tile`, in a"
                raise MemoryError(f"{advice} new store. {error}") from error
            raise
        tiles.write(values, *tile)
        return outcome  # type: ignore[return-value]

    def compute(self, tile: Tile) -> NDArray[Any]:
        """The entries of a tile."""
        i, j = tile
        grid = self.folder.grid
        on_diagonal = grid.symmetric and i == j
        arguments = [self._first(i)]
        if self.folder.manifest.kind == "kernel" and not on_diagonal:
            arguments.append(self._samples(1, j))
        elif on_diagonal and not self.alone:
            arguments *= 2
        try:
            found = self.kernel(*arguments)
        except ValueError as error:
            named = self._not_finite(arguments, tile)
            if not named:
                raise
            # A kernel that checks its samples itself reports their indices within the tile.
            raise ValueError(
                f"{error} Counted from 0 in the whole data set, these samples are not finite: "
                f"{', '.join(named[:_NAMED])}. {_OTHERS_STAY}"
            ) from error
        values = self._checked(found, tile)
        if on_diagonal:
            values = _symmetric(values, grid.bounds(i, j)[0].start)
        return values

    def _not_finite(self, batches: list[Tensor], tile: Tile) -> list[str]:
        """The samples of a tile that have NaN or infinite entries, by their index in the data."""
        second = "x1" if self.folder.grid.symmetric else "x2"
        starts = [bounds.start for bounds in self.folder.grid.bounds(*tile)]
        found = []
        for name, start, batch in zip(("x1", second), starts, batches, strict=False):
            wrong = ~batch.flatten(1).isfinite().all(1)
            found += [f"{start + int(n)} of {name}" for n in wrong.nonzero()]
        return list(dict.fromkeys(found))

    def _first(self, i: int) -> Tensor:
        """The samples of a row of tiles; they are read once for consecutive tiles of that row."""
        if self._rows is None or self._rows[0] != i:
            self._rows = i, self._samples(0, i)
        return self._rows[1]

    def _samples(self, side: int, block: int) -> Tensor:
        found = torch.from_numpy(self.folder.samples(side, block))
        return found if self.device is None else found.to(self.device)

    def _checked(self, found: object, tile: Tile) -> NDArray[Any]:
        """What the kernel returned, as a finite NumPy array in the store's dtype."""
        size = self.folder.grid.size(*tile)
        value = found if isinstance(found, Tensor) else None
        if value is None and isinstance(found, np.ndarray):
            value = torch.from_numpy(found)
        if value is None or tuple(value.shape) != size or value.is_complex():
            raise value_error(
                "kernel",
                f"a function that returns {list(size)} for so many samples",
                describe(value if value is not None else found),
                "Of an empirical kernel take output='mean' or 'pseudo', one number for each pair.",
            )
        values = value.detach().cpu().numpy().astype(self.folder.manifest.dtype, copy=False)
        if not np.isfinite(values.sum(dtype=np.float64)):
            self._refuse_entries(values, tile)
        return values

    def _refuse_entries(self, values: NDArray[Any], tile: Tile) -> None:
        """Raise `ValueError` if an entry is not finite, naming the samples that it belongs to."""
        wrong = ~np.isfinite(values)
        if not wrong.any():
            return
        rows, columns = self.folder.grid.bounds(*tile)
        first, second = (np.argwhere(wrong)[0] + (rows.start, columns.start)).tolist()
        pair = f"the first between samples {first} and {second}, counted from 0"
        if self.folder.manifest.kind == "features":
            pair = f"the first of sample {first}, counted from 0"
        of_x1 = (wrong.all(1).nonzero()[0] + rows.start).tolist()
        of_x2 = (wrong.all(0).nonzero()[0] + columns.start).tolist()
        second_set = "x1" if self.folder.grid.symmetric else "x2"
        named = [f"{n} of x1" for n in of_x1] + [f"{n} of {second_set}" for n in of_x2]
        if self.folder.manifest.kind == "kernel" and named:
            pair += f"; all those of sample {', '.join(list(dict.fromkeys(named))[:_NAMED])}"
        raise value_error(
            "kernel",
            "finite",
            f"{int(wrong.sum())} entries of a tile that are not ({pair})",
            f"Look at these samples. {_OTHERS_STAY}",
        )


def _symmetric(values: NDArray[Any], start: int) -> NDArray[Any]:
    """(K + Kᵀ)/2 for a tile K on the diagonal; K itself if it is exactly symmetric.

    Raises:
        ValueError: K is asymmetric by more than rounding. The tiles below the diagonal, which are
            not computed, would then not be the transposes of those above.
    """
    tile = torch.from_numpy(values)
    if torch.equal(tile, tile.T):
        return values
    off = np.abs(values - values.T)
    largest = float(np.abs(values).max())
    if float(off.max()) > _LOOSE_SYMMETRY * largest:
        n, m = (int(k) + start for k in np.unravel_index(int(off.argmax()), off.shape))
        raise value_error(
            "kernel",
            "symmetric: k(a, b) = k(b, a)",
            f"entries {n}, {m} and {m}, {n} that differ by {off.max():.3g}",
            "For a matrix that is not symmetric pass x2=x1.",
        )
    return (0.5 * values + 0.5 * values.T).astype(values.dtype, copy=False)


def _modules(kernel: object) -> list[nn.Module]:
    """The kernel, if it is a module, or the modules among a partial's function and arguments."""
    if isinstance(kernel, functools.partial):
        parts = (kernel.func, *kernel.args, *kernel.keywords.values())
        return [module for part in parts for module in _modules(part)]
    return [kernel] if isinstance(kernel, nn.Module) else []


_one_at_a_time = threading.Lock()


def run_tile(job: Job, tile: Tile, threads: int | None) -> Outcome:
    """`job.ensure(tile)` with `threads` PyTorch threads; a process computes one tile at a time."""
    with _one_at_a_time:
        if threads is None:
            return job.ensure(tile)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return job.ensure(tile)
        finally:
            torch.set_num_threads(before)
