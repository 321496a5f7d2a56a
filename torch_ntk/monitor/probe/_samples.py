"""Samples of a dataset as a batch, and the indices of different samples in a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from ..._checks import describe, type_error, value_error
from ..._functional import Batch, quiet

_MOST = 4096  # the largest number of samples that are read from a dataset


def batch_of(dataset: Dataset[Any], indices: object = None) -> Any:
    """The samples of a dataset at some indices, or all of them, collated as by a `DataLoader`.

    Random states are restored afterwards, as a dataset may draw random augmentations.

    Raises:
        TypeError: The dataset has no `__getitem__`, or the indices are not integers.
        ValueError: There are no samples or too many, or an index is out of range.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise type_error(
            "probe",
            "a dataset with __getitem__",
            describe(dataset),
            "Pass samples of it as tensors, probe=(x, y).",
        )
    size = len(dataset) if isinstance(dataset, Sized) else None
    chosen = range(size or 0) if indices is None else _checked(indices, size)
    if not 0 < len(chosen) <= _MOST:
        raise value_error(
            "probe",
            f"1 to {_MOST} samples of a dataset",
            f"{len(chosen)} of {describe(dataset)}",
            "Choose some by index: probe=(dataset, range(64)).",
        )
    with quiet(None, torch.device("cpu")):
        return default_collate([dataset[k] for k in chosen])


def _checked(indices: object, size: int | None) -> list[int]:
    """The indices as a list, checked against the size of the dataset if that is known."""
    expected = "indices of samples beside a dataset"
    remedy = "Pass probe=(dataset, [0, 5, 7]), for example."
    if isinstance(indices, Tensor):
        indices = indices.tolist()
    if not isinstance(indices, Iterable) or isinstance(indices, (str, bytes)):
        raise type_error("probe", expected, describe(indices), remedy)
    chosen = list(indices)
    for k in chosen:
        if isinstance(k, bool) or not isinstance(k, int):
            raise type_error("probe", expected, f"{describe(k)} among them", remedy)
        if k < 0 or (size is not None and k >= size):
            limit = "" if size is None else f" below {size}"
            raise value_error("probe", f"{expected}, from 0 and{limit}", f"{k}", remedy)
    return chosen


def first_of_each(x: Batch) -> list[int]:
    """The indices of the samples that do not equal an earlier one.

    Two samples are equal if all of their tensors are bitwise equal. They make the kernel of any
    network singular.
    """
    seen: dict[bytes, int] = {}
    rows = [t.detach().cpu().reshape(len(x), -1).contiguous() for t in x.tensors]
    numbers = [row.view(torch.uint8).numpy() for row in rows]
    for k in range(len(x)):
        seen.setdefault(b"".join(n[k].tobytes() for n in numbers), k)
    return sorted(seen.values())
