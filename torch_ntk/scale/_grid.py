"""How a matrix is divided into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Tile = tuple[int, int]
"""The place of a tile: its row of tiles and its column of tiles."""


@dataclass(frozen=True)
class Grid:
    """Tiles of one size; the last of a row or column are as large as what is left.

    Of a symmetric matrix only the tiles with i ≤ j exist: the tile (j, i) is the transpose of the
    tile (i, j).

    Attributes:
        shape: Of the matrix.
        tile: Rows and columns of a tile.
        symmetric: Whether the matrix is.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    symmetric: bool

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.shape[0] // self.tile[0])

    @property
    def columns(self) -> int:
        """Columns of tiles."""
        return -(-self.shape[1] // self.tile[1])

    @property
    def count(self) -> int:
        """How many tiles exist."""
        return self.rows * (self.rows + 1) // 2 if self.symmetric else self.rows * self.columns

    @property
    def entries(self) -> int:
        """How many entries the tiles that exist have together."""
        full = self.shape[0] * self.shape[1]
        if not self.symmetric:
            return full
        blocks = (self.size(i, i) for i in range(self.rows))
        return (full + sum(a * b for a, b in blocks)) // 2

    def tiles(self, first: int = 0) -> Iterator[Tile]:
        """All tiles by rows, beginning with the row of tiles `first`."""
        for i in (*range(first, self.rows), *range(first)):
            for j in range(i if self.symmetric else 0, self.columns):
                yield i, j

    def __contains__(self, tile: Tile) -> bool:
        i, j = tile
        least = i if self.symmetric else 0
        return 0 <= i < self.rows and least <= j < self.columns

    def bounds(self, i: int, j: int) -> tuple[slice, slice]:
        """Rows and columns of the matrix that a tile covers."""
        return _part(i, self.tile[0], self.shape[0]), _part(j, self.tile[1], self.shape[1])

    def size(self, i: int, j: int) -> tuple[int, int]:
        """Rows and columns of a tile."""
        rows, columns = self.bounds(i, j)
        return rows.stop - rows.start, columns.stop - columns.start

    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes of the rows and columns of tiles, as Dask wants them."""
        return (
            tuple(self.size(i, 0)[0] for i in range(self.rows)),
            tuple(self.size(0, j)[1] for j in range(self.columns)),
        )


def _part(index: int, size: int, end: int) -> slice:
    return slice(index * size, min(end, (index + 1) * size))
