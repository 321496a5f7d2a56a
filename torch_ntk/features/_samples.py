"""Read samples from a batch, a dataset or a loader."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from .._checks import value_error
from .._functional import Batch
from ..memory import ranges

ONE_BY_ONE = (
    "Call ntk_features for one batch after the other: the same seed gives the same projection."
)


class Samples(ABC):
    """N samples that are read in blocks.

    Attributes:
        n: The number N of samples.
    """

    n: int

    @abstractmethod
    def first(self) -> Any:
        """At least one sample, as a batch in the caller's form."""

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Any]:
        """All samples in order, in blocks of about `size`; `first` must be called before."""


class _OfBatch(Samples):
    def __init__(self, name: str, x: object) -> None:
        self._batch = Batch.of(name, x)
        self.n = len(self._batch)

    def first(self) -> Any:
        return self._batch[:1].value

    def blocks(self, size: int) -> Iterator[Any]:
        return (block.value for block in self._batch.split(size))


class _OfDataset(Samples):
    def __init__(self, name: str, x: Dataset[Any]) -> None:
        self._dataset, self.n = x, _length(name, x)

    def first(self) -> Any:
        return self._block(0, 1)

    def blocks(self, size: int) -> Iterator[Any]:
        return (self._block(a, b) for a, b in ranges(0, self.n, size))

    def _block(self, start: int, stop: int) -> Any:
        return default_collate([self._dataset[i] for i in range(start, stop)])


class _OfLoader(Samples):
    def __init__(self, name: str, x: DataLoader[Any]) -> None:
        self.n = _length(name, x.dataset)
        if not isinstance(x.sampler, SequentialSampler):
            raise value_error(
                name,
                "a DataLoader that goes over its dataset in order",
                f"one with a {type(x.sampler).__name__}",
                "Row n of the features is sample n of the dataset: pass shuffle=False, or the "
                "dataset itself.",
            )
        if x.drop_last and x.batch_size is not None and self.n % x.batch_size:
            raise value_error(
                name,
                "a DataLoader of all samples",
                f"one with drop_last=True that leaves out {self.n % x.batch_size}",
                "Pass drop_last=False.",
            )
        self._loader = x

    def first(self) -> Any:
        self._batches = iter(self._loader)
        self._first = next(self._batches)
        return self._first

    def blocks(self, size: int) -> Iterator[Any]:
        return itertools.chain([self._first], self._batches)


def _length(name: str, dataset: object) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise value_error(
            name, "samples of a known number", f"a {type(dataset).__name__}", ONE_BY_ONE
        )
    n = len(dataset)
    if n == 0:
        raise value_error(name, "of at least one sample", "an empty dataset")
    return n


def samples_of(name: str, x: object) -> Samples:
    """The samples that a caller passes as the argument `name`: a batch, a dataset or a loader."""
    if isinstance(x, DataLoader):
        return _OfLoader(name, x)
    if isinstance(x, Dataset):
        return _OfDataset(name, x)
    return _OfBatch(name, x)
