"""Features in a Zarr store: a folder of compressed blocks that are read when they are used."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .._checks import value_error

_BLOCK = 2**22  # bytes
_OF_THE_MODEL = "(model)"
"""Replaces the empty name, which is the name of the model among its own modules."""


class FeatureArrays:
    """Writes arrays of known shapes in any order; the folder appears when it is complete.

    The metadata are stored as attributes. A path that exists and is not a Zarr store, and a dtype
    that NumPy does not have, are refused.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        metadata: Mapping[str, str],
    ) -> None:
        self._zarr = _package()
        if path.exists() and not (path / "zarr.json").is_file():
            came = f"{str(path)!r}, which exists and is not one"
            raise value_error("store", "a path for a Zarr store", came)
        if dtype == torch.bfloat16:
            expected = "a path that ends in .safetensors for a model in bfloat16"
            raise value_error("store", expected, repr(str(path)), "NumPy does not have this dtype.")
        self._path, self._shapes, self._dtype = path, dict(shapes), dtype
        self._metadata = dict(metadata)

    def __enter__(self) -> FeatureArrays:
        """Make a temporary store in the same folder."""
        self._draft = Path(
            tempfile.mkdtemp(dir=self._path.parent, prefix=f".{self._path.name}.", suffix=".part")
        )
        self._group: Any = self._zarr.open_group(str(self._draft), mode="w")
        self._group.attrs.update(self._metadata)
        like = torch.empty((), dtype=self._dtype).numpy().dtype
        for name, shape in self._shapes.items():
            each = torch.Size(shape[1:]).numel() * like.itemsize
            chunks = (max(1, min(shape[0], _BLOCK // max(1, each))), *shape[1:])
            self._group.create_array(_key(name), shape=tuple(shape), chunks=chunks, dtype=like)
        return self

    def write(self, name: str, first: int, rows: Tensor) -> None:
        """Write consecutive rows of an array, from the row `first` on."""
        self._group[_key(name)][first : first + len(rows)] = rows.detach().cpu().numpy()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Rename the store to its path, or remove it after an error."""
        if kind is not None:
            shutil.rmtree(self._draft, ignore_errors=True)
            return
        self._draft.chmod(0o755)
        if self._path.exists():  # a folder cannot be renamed to one that is not empty
            old = self._draft.with_suffix(".old")
            os.replace(self._path, old)
            os.replace(self._draft, self._path)
            shutil.rmtree(old)
        else:
            os.replace(self._draft, self._path)

    def read(self) -> dict[str, Any]:
        """The Zarr arrays of the finished store."""
        group = self._zarr.open_group(str(self._path), mode="r")
        return {name: group[_key(name)] for name in self._shapes}


def _key(name: str) -> str:
    return name or _OF_THE_MODEL


def _package() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "A store that ends in .zarr needs the package zarr: pip install zarr, "
            "or pass store='….safetensors'."
        ) from error
    return zarr
