"""The manifest of a store: its kernel, samples, tiles, and the versions that computed them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from math import prod
from typing import Any, Literal

import numpy as np
import torch

from .._checks import value_error
from .._version import __version__
from ._grid import Grid

FORMAT = 1
Kind = Literal["kernel", "features"]
_MOST = 2**48  # the largest length of an axis that is believed
_DTYPES = ("float32", "float64")
_NUMBERS = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", *_DTYPES),
)
_NO_REPAIR = (
    "The manifest was changed, or another program wrote it. Nothing in this folder is used."
)


@dataclass(frozen=True)
class About:
    """Describes an array that was copied into the store.

    Attributes:
        shape: The shape of the array.
        dtype: NumPy's name of its dtype.
        sha256: The hash of its entries in row-major order.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What distinguishes a store from others.

    Attributes:
        kind: Whether the matrix is a kernel or random features.
        kernel: The description of the function that computes it (see `_describe`).
        x1: The samples of the rows.
        x2: The samples of the columns; None if they are those of the rows, and for features.
        labels: The labels or targets of x1; None if there are none.
        columns: The number of columns of the matrix.
        tile: The number of samples along a side of a tile.
        dtype: NumPy's name of the dtype of the entries.
        versions: The versions of the packages that compute the matrix.
    """

    kind: Kind
    kernel: dict[str, Any]
    x1: About
    x2: About | None
    labels: About | None
    columns: int
    tile: int
    dtype: str
    versions: dict[str, str]

    @property
    def grid(self) -> Grid:
        """The division of the matrix into tiles."""
        width = self.columns if self.kind == "features" else self.tile
        shape = (self.x1.shape[0], self.columns)
        return Grid(shape, (self.tile, width), self.kind == "kernel" and self.x2 is None)

    @property
    def bytes(self) -> int:
        """The size of all tiles on disk."""
        grid = self.grid
        return grid.count * (prod(grid.tile) * np.dtype(self.dtype).itemsize + 4)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        found = {"format": FORMAT, "kernel_sha256": digest_of(self.kernel), **asdict(self)}
        return json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def differences(self, wanted: Manifest) -> list[str]:
        """How this manifest differs from the one that is wanted, one phrase for each difference.

        The versions of PyTorch and of this package count, because another version may compute
        another kernel. Those of NumPy, Zarr and Python are recorded but not compared.
        """
        found = []
        if self.kind != wanted.kind:
            found.append(f"it holds a matrix of {self.kind}, not of {wanted.kind}")
        found += [f"kernel: {text}" for text in _differing("", self.kernel, wanted.kernel)]
        for name in ("x1", "x2", "labels"):
            mine, other = getattr(self, name), getattr(wanted, name)
            if mine != other and not (name == "labels" and other is None):
                found.append(f"{name}: {_told(mine)}, not {_told(other)}")
        for name in ("columns", "tile", "dtype"):
            if getattr(self, name) != getattr(wanted, name):
                found.append(f"{name}: {getattr(self, name)}, not {getattr(wanted, name)}")
        for name in ("torch", "torch_ntk"):
            mine, other = self.versions.get(name), wanted.versions.get(name)
            if mine != other:
                found.append(f"version of {name}: {mine}, not {other}")
        return found


def versions() -> dict[str, str]:
    """The versions of the packages that compute in this process."""
    return {
        "torch_ntk": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "zarr": metadata.version("zarr"),
        "python": platform.python_version(),
    }


def digest_of(description: dict[str, Any]) -> str:
    """SHA-256 of a description, in a form that does not depend on the order of its keys."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_from(found: dict[str, Any]) -> Manifest:
    """The manifest that was read from a file, after every value in it has been checked."""
    version = found.get("format")
    if version != FORMAT:
        raise _refused(f"a store of format {FORMAT}", f"format {version!r}")
    kind = found.get("kind")
    if kind not in ("kernel", "features"):
        raise _refused("a store of a kernel or of features", f"kind {kind!r}")
    kernel, known = found.get("kernel"), found.get("versions")
    if not isinstance(kernel, dict) or found.get("kernel_sha256") != digest_of(kernel):
        raise _refused("a manifest with a kernel and its hash", "one where they do not agree")
    if not isinstance(known, dict) or not all(isinstance(v, str) for v in known.values()):
        raise _refused("a manifest with versions", "one without")
    dtype = found.get("dtype")
    if dtype not in _DTYPES:
        raise _refused(f"of type {' or '.join(_DTYPES)}", f"{dtype!r}")
    x1, x2 = _about(found, "x1"), _about(found, "x2")
    if x1 is None:
        raise _refused("a manifest with samples", "one without")
    labels = _about(found, "labels")
    columns, tile = _count(found.get("columns")), _count(found.get("tile"))
    side = x1 if x2 is None else x2
    if kind == "kernel" and columns != side.shape[0]:
        raise _refused(f"a kernel of {side.shape[0]} columns", f"{columns}")
    return Manifest(kind, kernel, x1, x2, labels, columns, tile, dtype, known)


def _about(found: dict[str, Any], name: str) -> About | None:
    value = found.get(name)
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"shape", "dtype", "sha256"}:
        raise _refused(f"shape, dtype and sha256 of {name}", f"{value!r:.100}")
    shape, dtype, sha256 = value["shape"], value["dtype"], value["sha256"]
    if not isinstance(shape, list) or not 1 <= len(shape) <= 16:
        raise _refused(f"a shape of {name}", f"{shape!r:.100}")
    if dtype not in _NUMBERS:
        raise _refused(f"numbers as {name}", f"{dtype!r:.100}")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise _refused(f"a hash of {name}", f"{sha256!r:.100}")
    return About(tuple(_count(n) for n in shape), dtype, sha256)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise _refused(f"sizes from 1 to {_MOST}", f"{value!r:.100}")
    return value


def _refused(expected: str, got: str) -> ValueError:
    return value_error("store", expected, got, _NO_REPAIR)


def _told(about: About | None) -> str:
    if about is None:
        return "none"
    return f"{about.dtype} {list(about.shape)} with hash {about.sha256[:12]}"


def _differing(path: str, mine: Any, other: Any) -> Iterator[str]:
    """A phrase for each leaf in which two descriptions differ."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in sorted({*mine, *other}):
            inner = f"{path}.{key}" if path else key
            yield from _differing(inner, mine.get(key), other.get(key))
    elif mine != other:
        yield f"{path} is {mine!r:.80}, not {other!r:.80}"
