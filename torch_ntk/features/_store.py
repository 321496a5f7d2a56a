"""Features in a safetensors file, which is written row by row and read by memory mapping.

The file consists of a header with the position of each tensor, and the tensors one after the other.
Rows can therefore be written to their place as soon as they are known.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from .._checks import type_error, value_error

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def check_store(store: object) -> Path:
    """The argument `store` as a path, if a file can be made there."""
    if not isinstance(store, (str, os.PathLike)):
        raise type_error("store", "None or the path of a file to be written", store)
    path = Path(store)
    if path.suffix not in (".safetensors", ".zarr"):
        raise value_error("store", "a path that ends in .safetensors or .zarr", repr(str(path)))
    if not path.parent.is_dir():
        raise value_error("store", "a path in a folder that exists", repr(str(path)))
    return path


class FeatureFile:
    """Writes tensors of known shapes in any order; the file appears when it is complete.

    The metadata are stored in its header.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        metadata: Mapping[str, str],
    ) -> None:
        self._path, self._dtype = path, dtype
        item = torch.empty((), dtype=dtype).element_size()
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._starts: dict[str, int] = {}
        at = 0
        for name, shape in shapes.items():
            size = torch.Size(shape).numel() * item
            header[name] = {
                "dtype": _TYPES[dtype],
                "shape": list(shape),
                "data_offsets": [at, at + size],
            }
            self._starts[name] = at
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        self._header, self._size = len(text).to_bytes(8, "little") + text, at

    def __enter__(self) -> FeatureFile:
        """Make a temporary file of the final size in the same folder."""
        handle, self._draft = tempfile.mkstemp(
            dir=self._path.parent, prefix=f".{self._path.name}.", suffix=".part"
        )
        self._file: BinaryIO = os.fdopen(handle, "r+b")
        self._file.write(self._header)
        self._file.truncate(len(self._header) + self._size)
        return self

    def write(self, name: str, first: int, rows: Tensor) -> None:
        """Write consecutive rows of a tensor, from the row `first` on."""
        rows = rows.detach().cpu().contiguous()
        each = rows[0].numel() * rows.element_size()
        self._file.seek(len(self._header) + self._starts[name] + first * each)
        self._file.write(rows.view(torch.uint8).numpy().tobytes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Rename the file to its path, or remove it after an error."""
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            os.chmod(self._draft, 0o666 & ~_umask())
            os.replace(self._draft, self._path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._draft)

    def read(self) -> dict[str, Tensor]:
        """The tensors of the finished file, mapped into memory: pages are read when used."""
        with safe_open(self._path, "pt") as file:
            return {name: file.get_tensor(name) for name in self._starts}


def _umask() -> int:
    """The umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
