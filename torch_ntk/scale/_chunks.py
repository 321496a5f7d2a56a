"""A Zarr array whose chunks are written and read one at a time, each with its checksum."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import value_error
from ._packages import package

_CHECKSUM = 4  # bytes behind those of the entries
_MOST_METADATA = 2**20  # bytes of a JSON file that is read


class DamagedError(Exception):
    """The size or the checksum of a chunk's file is not that of what was written."""


class Chunks:
    """The chunks of one array.

    A chunk is written to a temporary file that is then renamed, so that a reader or a second writer
    finds all of it or nothing. The file consists of the entries and their CRC32C. Because nothing
    is compressed, its size is known before it is read.

    Zarr writes the metadata of the array. Before the array is used again they are compared with
    what `create` would write, so that no other codec is ever run.

    Args:
        path: The array's folder.
        shape: The shape of the array.
        chunk: The shape of a chunk.
        dtype: NumPy's name of the dtype of the entries.
    """

    def __init__(self, path: Path, shape: Sequence[int], chunk: Sequence[int], dtype: str) -> None:
        self.path = path
        self._shape, self._chunk, self._dtype = tuple(shape), tuple(chunk), np.dtype(dtype)
        self._bytes = prod(self._chunk) * self._dtype.itemsize + _CHECKSUM
        self._open: Any = None

    def create(self) -> None:
        """Make the array, without chunks."""
        from zarr.codecs import Crc32cCodec

        package("zarr").create_array(
            store=str(self.path),
            shape=self._shape,
            chunks=self._chunk,
            dtype=self._dtype,
            compressors=[Crc32cCodec()],
            filters=[],
            # NaN shows other programs that read the array which chunks are missing.
            fill_value=np.nan if self._dtype.kind == "f" else 0,
        )

    def check(self) -> None:
        """Raise `ValueError` unless the metadata of the array are those that `create` writes."""
        self._refuse_links()
        about = read_json(self.path / "zarr.json")
        expected = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self._shape),
            "data_type": self._dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self._chunk)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        }
        wrong = [name for name, value in expected.items() if about.get(name) != value]
        order = {"name": "bytes", "configuration": {"endian": "little"}}
        if self._dtype.itemsize == 1:
            order = {"name": "bytes"}
        if about.get("codecs") != [order, {"name": "crc32c"}]:
            wrong.append("codecs")
        if about.get("storage_transformers"):
            wrong.append("storage_transformers")
        if wrong:
            raise value_error(
                "store",
                "one that compute_kernel or compute_features has made",
                f"{str(self.path)!r} with other {', '.join(wrong)}",
                "Its metadata do not fit its manifest; it is not read.",
            )

    def file(self, *index: int) -> Path:
        """The file of a chunk; axes whose index is left out are not divided into chunks."""
        return self.path.joinpath("c", *(str(i) for i in self._place(index)))

    def _place(self, index: Sequence[int]) -> tuple[int, ...]:
        return (*index, *(0,) * (len(self._shape) - len(index)))

    @property
    def blocks(self) -> int:
        """How many chunks there are along the first axis."""
        return -(-self._shape[0] // self._chunk[0])

    def read(self, *index: int) -> NDArray[Any]:
        """The entries of a chunk; a chunk at the end of the array is cut off there.

        Raises:
            FileNotFoundError: The chunk has not been written.
            DamagedError: The chunk is not what was written.
        """
        self._refuse_links(*index)
        about = self.file(*index).lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size != self._bytes:
            raise DamagedError(f"{self.file(*index)} has {about.st_size} of {self._bytes} bytes")
        try:
            found = self._array().get_block_selection(self._place(index))
        except ValueError as error:
            raise DamagedError(f"{self.file(*index)}: {error}") from error
        return np.asarray(found)

    def write(self, values: NDArray[Any], *index: int) -> None:
        """Write a chunk; `OSError` if that is impossible, for example because the disk is full."""
        self._refuse_links(*index)
        self._array().set_block_selection(self._place(index), np.ascontiguousarray(values))

    def remove(self, *index: int) -> None:
        """Remove a damaged chunk."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file(*index))

    def _refuse_links(self, *index: int) -> None:
        """Raise `ValueError` if the array's folder or a folder inside of it is a symbolic link."""
        for folder in (self.path, *reversed(self.file(*index).parents)):
            inside = folder == self.path or self.path in folder.parents
            if inside and folder.is_symlink():
                raise value_error(
                    "store",
                    "a folder of its own files",
                    f"a link at {str(folder)!r}",
                    "Links are not followed.",
                )

    def _array(self) -> Any:
        if self._open is None:
            array = package("zarr").open_array(str(self.path), mode="r+", zarr_format=3)
            self._open = array.with_config({"write_empty_chunks": True})
        return self._open


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; `ValueError` if there is none."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_METADATA + 1)
        found = json.loads(text) if len(text) <= _MOST_METADATA else None
    except (OSError, ValueError, RecursionError) as error:
        raise value_error("store", "a store of this package", f"{str(path)!r}: {error}") from error
    if not isinstance(found, dict):
        raise value_error("store", "a store of this package", f"no JSON object in {str(path)!r}")
    return found
