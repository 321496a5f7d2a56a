"""Samples in any form in which a caller may have them, read a block at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from .._checks import check_tensor, describe, type_error, value_error
from ._packages import package

_EXPECTED = (
    "a tensor or array [N, ...], a Dask or Zarr array, a map-style dataset, or the path of an .npy "
    "file or a Zarr array"
)


class Source(ABC):
    """N samples that are read a block at a time.

    Attributes:
        shape: The shape `[N, ...]` of all samples together.
        dtype: NumPy's name of their dtype.
    """

    shape: tuple[int, ...]
    dtype: str

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """The samples from `start` to `stop` (exclusive)."""


class _Array(Source):
    """An array-like object with a shape, a dtype, and slices that NumPy can convert."""

    def __init__(self, name: str, array: Any) -> None:
        self._array, self._name = array, name
        self.shape = tuple(int(n) for n in array.shape)
        self.dtype = _checked(name, np.dtype(array.dtype), self.shape)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._array[start:stop]).astype(self.dtype, copy=False)


class _Tensor(Source):
    def __init__(self, name: str, tensor: Tensor) -> None:
        self._tensor = check_tensor(name, tensor).detach()
        self.shape = tuple(tensor.shape)
        if tensor.dtype == torch.bfloat16:
            raise type_error(name, "of numbers that NumPy has", tensor, "Pass x.float().")
        like = torch.empty((), dtype=tensor.dtype).numpy().dtype
        self.dtype = _checked(name, like, self.shape)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._tensor[start:stop].cpu().numpy())


class _OfDataset(Source):
    def __init__(self, name: str, dataset: Dataset[Any]) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            came = f"a {type(dataset).__name__}"
            raise value_error(name, "a dataset with a length, whose samples have a number", came)
        self._dataset, self._name, self._n = dataset, name, len(dataset)
        if not self._n:
            raise value_error(name, "of at least one sample", "an empty dataset")
        first = self.rows(0, 1)
        self.shape = (self._n, *first.shape[1:])
        self.dtype = _checked(name, first.dtype, self.shape)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        samples = [self._sample(i) for i in range(start, stop)]
        if len({(s.shape, s.dtype) for s in samples}) > 1:
            came = " and ".join(sorted({f"{s.dtype} {list(s.shape)}" for s in samples}))
            raise value_error(self._name, "samples of one shape and type", came)
        return np.stack(samples)

    def _sample(self, index: int) -> NDArray[Any]:
        found = self._dataset[index]
        # Most datasets return a tuple of the sample and its label.
        sample = found[0] if isinstance(found, (tuple, list)) else found
        if isinstance(sample, Tensor):
            return np.asarray(sample.detach().cpu().numpy())
        if isinstance(sample, (np.ndarray, np.generic)):
            return np.asarray(sample)
        raise type_error(
            self._name,
            "a dataset of tensors or arrays, or of tuples that begin with one",
            sample,
            "For images give the dataset a transform: torchvision.transforms.ToTensor().",
        )


def source_of(name: str, x: object) -> Source:
    """The samples that a caller passes as the argument `name`, in any supported form."""
    if isinstance(x, Tensor):
        return _Tensor(name, x)
    if isinstance(x, (str, os.PathLike)):
        return _Array(name, _file(name, Path(x)))
    if isinstance(x, Dataset):
        return _OfDataset(name, x)
    if isinstance(x, (list, tuple)) or not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise type_error(name, _EXPECTED, describe(x))
    return _Array(name, x)


def _file(name: str, path: Path) -> Any:
    if not path.exists():
        raise value_error(name, "a path that exists", repr(str(path)))
    if path.is_dir():
        # Arrays of older formats may hold pickles, so only format 3 is read.
        return package("zarr").open_array(str(path), mode="r", zarr_format=3)
    if path.suffix != ".npy":
        raise value_error(name, _EXPECTED, repr(str(path)))
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:  # pickled objects, or no such file at all
        raise value_error(name, "an .npy file of numbers", f"{str(path)!r}: {error}") from error


def _checked(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise type_error(name, "of real numbers of at most 64 bits", f"dtype {dtype}")
    if not shape or 0 in shape:
        raise value_error(name, "of at least one sample on its first axis", f"shape {shape}")
    return dtype.newbyteorder("=").name
