"""Samples of datasets, and samples that repeat."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from torch_ntk.monitor import Probe
from torch_ntk.monitor.probe._probe import Unread, read_probe
from torch_ntk.monitor.probe._reader import Reader

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
DATA = TensorDataset(X, Y)


class Augmented(Dataset[tuple[Tensor, int]]):
    """Draws from every generator that there is."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        noise = torch.rand(2) + np.random.rand() + random.random()  # noqa: NPY002
        return X[k] + noise.float(), k


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ((DATA, [7, 0, 3]), [7, 0, 3]),
        ((DATA, range(4)), [0, 1, 2, 3]),
        ((DATA, torch.tensor([2, 5])), [2, 5]),
        (Subset(DATA, [9, 1]), [9, 1]),
        (DATA, list(range(10))),
        ((Subset(DATA, [9, 1, 4]), [2]), [4]),
    ],
)
def test_a_dataset_by_index(given: Any, chosen: list[int]) -> None:
    found = read_probe("probe", given)
    assert isinstance(found, Unread)
    probe = found.read(Reader(torch.nn.Linear(2, 3)).read)
    assert torch.equal(probe.x, X[chosen])
    assert probe.y is not None
    assert torch.equal(probe.y, Y[chosen])


def test_samples_of_an_unusual_form() -> None:
    data: Any = [{"left": x, "meta": {"class": y}} for x, y in DATA]
    wrapped: Any = Subset(data, [3, 4])
    found = read_probe("validation_probe", wrapped)
    assert isinstance(found, Unread)
    text = r"`validation_probe` must be taken from a batch with one of the keys"
    with pytest.raises(TypeError, match=text):
        found.read(Reader().read)
    probe = found.read(Reader(input_fn=lambda b: (b["left"], b["meta"]["class"])).read)
    assert torch.equal(probe.x, X[3:5])
    assert probe.y is not None
    assert probe.y.tolist() == [3, 4]


def test_reading_a_dataset_draws_no_random_number() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    read_probe("probe", Augmented())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ((DATA, []), ValueError, "1 to 4096 samples"),
        ((DATA, [10]), ValueError, "below 10; got 10"),
        ((DATA, [-1]), ValueError, "got -1"),
        ((DATA, [0.5]), TypeError, "0.5 among them"),
        ((DATA, "12"), TypeError, "indices of samples"),
        ((DATA, 3), TypeError, "indices of samples"),
        (TensorDataset(torch.zeros(5000, 1)), ValueError, r"5000 of .*probe=\(dataset, range"),
        (Endless(), TypeError, "__getitem__"),
    ],
)
def test_datasets_that_cannot_be_read(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"`validation_probe` must be .*{text}"):
        read_probe("validation_probe", given)


REPEATED = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_equal_samples_are_left_out(dtype: torch.dtype) -> None:
    x = REPEATED.to(dtype)
    with pytest.warns(UserWarning, match="2 of the 5 samples of `probe` equal an earlier one"):
        probe = read_probe("probe", (x, torch.arange(5)))
    assert isinstance(probe, Probe)
    assert torch.equal(probe.x, x[[0, 1, 3]])
    assert probe.y is not None
    assert probe.y.tolist() == [0, 1, 3]


def test_a_batch_gives_different_samples() -> None:
    """Repeated ones make room for later ones, without a word."""
    batch = (REPEATED, torch.arange(5))
    probe = Reader().first_of(batch, 3)
    assert probe.x.tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]
    with pytest.warns(UserWarning, match="has 3 different ones"):
        assert len(Reader().first_of(batch, 4).x) == 3


def test_samples_of_one_number_and_of_bools() -> None:
    assert Probe(torch.tensor([1.0, 2.0, 1.0])).distinct().x.tolist() == [1.0, 2.0]
    flags = torch.tensor([[True, False], [True, False], [False, False]])
    assert len(Probe(flags).distinct().x) == 2
    with pytest.raises(ValueError, match="`probe` must be a batch"):
        Probe(torch.zeros(3, 0))  # nothing to compare


def test_samples_are_equal_only_in_all_of_their_tensors() -> None:
    lengths = torch.tensor([1, 2, 1, 3, 1])
    kept = Probe({"x": REPEATED, "inner": [lengths]}, torch.arange(5)).distinct()
    assert kept.y is not None
    assert kept.y.tolist() == [0, 1, 3, 4]
    assert kept.x["inner"][0].tolist() == [1, 2, 3, 1]
