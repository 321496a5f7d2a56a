"""Where the samples come from."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_ntk.monitor import Probe, check_probe, probe_from_batch

X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
Pair = namedtuple("Pair", ["image", "target"])


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        (X, False),
        ((X,), False),
        ((X, Y), True),
        ([X, Y, torch.ones(3)], True),
        (Pair(X, Y), True),
        ({"x": X, "y": Y}, True),
        ({"image": X, "label": Y, "path": ["a"] * 5}, True),
        (UserDict(input_ids=X, labels=Y), True),
        ({"y": Y, "x": X}, True),
        ((X, torch.tensor(1)), False),
        ((X, torch.ones(4)), False),
        ((X, ["a"] * 5), False),
    ],
)
def test_forms_of_a_batch(batch: Any, labelled: bool) -> None:
    probe = probe_from_batch(batch, 3)
    assert torch.equal(probe.x, X[:3])
    assert (probe.y is not None) == labelled
    if probe.y is not None:
        assert torch.equal(probe.y, Y[:3])


def test_input_fn_for_the_rest() -> None:
    batch = {"left": (X, X), "meta": {"class": Y}}
    probe = probe_from_batch(batch, 5, lambda b: (b["left"][1], b["meta"]["class"]))
    assert torch.equal(probe.x, X)
    assert torch.equal(probe.y, Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [{"left": X}, [[X, Y], [X, Y]], "text", 3, [], {}, None])
def test_a_batch_of_another_form(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"`probe`.*input_fn"):
        probe_from_batch(batch, 3)


def test_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        probe_from_batch((X[:0], Y[:0]), 3)


def test_fewer_samples_than_asked_for() -> None:
    with pytest.warns(UserWarning, match="asks for 64 samples") as caught:
        probe = probe_from_batch((X, Y), 64)
    assert len(caught) == 1
    assert probe.x.shape[0] == 5


def test_the_probe_is_a_copy() -> None:
    x = X.clone()
    taken, given = probe_from_batch(x, 3), check_probe(x)
    assert isinstance(given, Probe)
    x.zero_()
    assert torch.equal(taken.x, X[:3])
    assert torch.equal(given.x, X)


def test_a_probe_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x: Tensor = torch.ones(2, 2)
    taken = probe_from_batch(x, 2)
    assert not taken.x.is_inference()


@pytest.mark.parametrize(
    ("probe", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (True, TypeError),
        (2.5, TypeError),
        ("64", TypeError),
        (None, TypeError),
        (X[:0], ValueError),
        (torch.tensor(1.0), ValueError),
        ((X, Y[:3]), ValueError),
        ((X, Y.tolist()), TypeError),
        ((X.numpy(), Y), TypeError),
        ((X, Y, Y), TypeError),
        ((X, torch.tensor(1)), ValueError),
    ],
)
def test_bad_probes(probe: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`probe"):
        check_probe(probe)
