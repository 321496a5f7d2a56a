"""How a matrix is divided into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Tile = tuple[int, int]
"""The place of a tile: its row of tiles and its column of tiles."""


@dataclass(frozen=True)
class Grid:
    """Tiles of one size; the last tile of each row and column is cut off at the matrix's end.

    If the matrix is symmetric, only the tiles with i ≤ j exist: tile (j, i) is the transpose of
    tile (i, j).

    Attributes:
        shape: The shape of the matrix.
        tile: The numbers of rows and columns of a tile.
        symmetric: Whether the matrix is symmetric.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    symmetric: bool

    @property
    def rows(self) -> int:
        """The number of rows of tiles."""
        return -(-self.shape[0] // self.tile[0])

    @property
    def columns(self) -> int:
        """The number of columns of tiles."""
        return -(-self.shape[1] // self.tile[1])

    @property
    def count(self) -> int:
        """How many tiles exist."""
        return self.rows * (self.rows + 1) // 2 if self.symmetric else self.rows * self.columns

    @property
    def entries(self) -> int:
        """The number of entries of all tiles that exist."""
        full = self.shape[0] * self.shape[1]
        if not self.symmetric:
            return full
        blocks = (self.size(i, i) for i in range(self.rows))
        return (full + sum(a * b for a, b in blocks)) // 2

    def tiles(self, first: int = 0) -> Iterator[Tile]:
        """All tiles row by row, beginning with row `first` and ending with the row before it."""
        for i in (*range(first, self.rows), *range(first)):
            for j in range(i if self.symmetric else 0, self.columns):
                yield i, j

    def __contains__(self, tile: Tile) -> bool:
        i, j = tile
        least = i if self.symmetric else 0
        return 0 <= i < self.rows and least <= j < self.columns

    def bounds(self, i: int, j: int) -> tuple[slice, slice]:
        """The rows and columns of the matrix that a tile covers."""
        return _part(i, self.tile[0], self.shape[0]), _part(j, self.tile[1], self.shape[1])

    def size(self, i: int, j: int) -> tuple[int, int]:
        """The numbers of rows and columns of a tile."""
        rows, columns = self.bounds(i, j)
        return rows.stop - rows.start, columns.stop - columns.start

    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes of the rows and columns of tiles, in the form of a Dask array's `chunks`."""
        return (
            tuple(self.size(i, 0)[0] for i in range(self.rows)),
            tuple(self.size(0, j)[1] for j in range(self.columns)),
        )


def _part(index: int, size: int, end: int) -> slice:
    return slice(index * size, min(end, (index + 1) * size))
