"""Where the samples come from."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_ntk.monitor import Probe
from torch_ntk.monitor.probe._probe import DEFAULT_PROBE, check_probe
from torch_ntk.monitor.probe._reader import Reader

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
        ((X, torch.ones(5), Y), False),
        ((X, torch.ones(5, 3), torch.ones(5), 3), False),
        ((X, X + 1.0), False),
        ((X, torch.arange(10).reshape(5, 2)), True),
        ({"x": X, "target": X + 1.0}, True),
    ],
)
def test_forms_of_a_batch(batch: Any, labelled: bool) -> None:
    probe = Reader().first_of(batch, 3)
    assert torch.equal(probe.x, X[:3])
    assert (probe.y is not None) == labelled
    if probe.y is not None:
        assert probe.y.shape[0] == 3
        assert not torch.equal(probe.y, torch.ones(3))


def test_targets_are_those_of_the_batch() -> None:
    for batch in ((X, Y), {"y": Y, "x": X}, [X, Y, torch.ones(3)]):
        assert torch.equal(Reader().first_of(batch, 3).y, Y[:3])


def test_ambiguous_targets_say_what_to_do() -> None:
    mask = torch.ones(5)
    for batch, reason in (((X, mask, Y), "which of the 3 entries"), ((X, X), "second view")):
        probe = Reader().first_of(batch, 3)
        assert probe.y is None
        assert reason in probe.why_none
        assert "input_fn" in probe.why_none
    told = Reader(input_fn=lambda batch: (batch[0], batch[0])).first_of((X, mask, Y), 3)
    assert torch.equal(told.y, X[:3])  # type: ignore[arg-type]


def test_one_number_per_sample_is_a_regression() -> None:
    x = torch.arange(5.0).reshape(5, 1)
    assert torch.equal(Reader().first_of((x, x.sin()), 3).y, x[:3].sin())  # type: ignore[arg-type]


def test_bools_become_labels() -> None:
    y = torch.tensor([True, False, True, True, False])
    taken, given = Reader().first_of((X, y), 5), check_probe((X, y))
    assert isinstance(given, Probe)
    for probe in (taken, given):
        assert torch.equal(probe.y, torch.tensor([1, 0, 1, 1, 0]))  # type: ignore[arg-type]
    several = Reader().first_of((X, torch.stack([y, ~y], 1)), 5).y
    assert several is not None
    assert several.dtype == torch.get_default_dtype()
    assert torch.equal(several[0], torch.tensor([1.0, 0.0]))


def test_input_fn_for_the_rest() -> None:
    batch = {"left": (X, X), "meta": {"class": Y}}
    probe = Reader(input_fn=lambda b: (b["left"][1], b["meta"]["class"])).first_of(batch, 5)
    assert torch.equal(probe.x, X)
    assert torch.equal(probe.y, Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [{"left": X}, [[X, Y], [X, Y]], "text", 3, [], {}, None])
def test_a_batch_of_another_form(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"`probe`.*input_fn"):
        Reader().first_of(batch, 3)


def test_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Reader().first_of((X[:0], Y[:0]), 3)


def test_fewer_samples_than_asked_for() -> None:
    with pytest.warns(UserWarning, match="asks for 64 samples") as caught:
        probe = Reader().first_of((X, Y), 64)
    assert len(caught) == 1
    assert probe.x.shape[0] == 5


def test_the_default_takes_what_there_is() -> None:
    assert DEFAULT_PROBE == 64
    assert repr(DEFAULT_PROBE) == "64"
    assert Reader().first_of((X, Y), check_probe(DEFAULT_PROBE)).x.shape[0] == 5  # type: ignore[arg-type]


def test_the_probe_is_a_copy() -> None:
    x = X.clone()
    taken, given = Reader().first_of(x, 3), check_probe(x)
    assert isinstance(given, Probe)
    x.zero_()
    assert torch.equal(taken.x, X[:3])
    assert torch.equal(given.x, X)


def test_a_probe_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x: Tensor = torch.eye(2)
    taken = Reader().first_of(x, 2)
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
        ((X, torch.tensor(1), Y), ValueError),
        ({"x": X, "lengths": Y[:3]}, ValueError),
        ({"x": [1.0]}, TypeError),
        ((X, torch.tensor(1)), ValueError),
    ],
)
def test_bad_probes(probe: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`probe"):
        check_probe(probe)


def test_a_bad_probe_says_what_to_pass() -> None:
    with pytest.raises(TypeError, match="Pass probe=64 to take them from the first"):
        check_probe("64")
