"""Batches that are none: the message names the tensor, what is wrong with it, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batch_forms import Encoding, OfParts, built, mapping, parts
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, explain, verify

CALLS: dict[str, Callable[..., Any]] = {
    "empirical_ntk": empirical_ntk,
    "empirical_nngp": empirical_nngp,
    "NTKOperator": NTKOperator,
    "verify": verify,
    "explain": explain,
}


class Graph:
    """An object with tensors, like those of graph libraries."""

    def __init__(self) -> None:
        self.x, self.edge_index = torch.randn(5, 4), torch.zeros(2, 3, dtype=torch.long)


class Sealed(dict[str, Any]):
    """A mapping of which there is no other copy."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise RuntimeError("sealed")


def with_entry(**entries: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**mapping(parts(3)), **entries}


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "numbers of samples": (
        with_entry(scale=torch.ones(4, dtype=torch.float64)),
        ValueError,
        r"same number of samples.*3 in x1?\['features'\], 4 in x1?\['scale'\].*forward_fn",
    ),
    "numbers of samples, nested": (
        lambda: {"a": [torch.ones(2), (torch.ones(3),)]},
        ValueError,
        r"2 in x1?\['a'\]\[0\], 3 in x1?\['a'\]\[1\]\[0\]",
    ),
    "no sample axis": (
        with_entry(scale=torch.tensor(2.0, dtype=torch.float64)),
        ValueError,
        r"`x1?\['scale'\]` must be a batch \[N, ...\].*first axis.*forward_fn",
    ),
    "no tensor": (
        lambda: {"features": np.ones((3, 4)), "name": "a"},
        TypeError,
        r"with tensors in it; got a dict of length 2 without a tensor.*as_tensor",
    ),
    "empty": (dict, TypeError, r"got a dict of length 0 without a tensor"),
    "no samples": (
        lambda: mapping(tuple(t[:0] for t in parts(3))),  # type: ignore[arg-type]
        ValueError,
        r"`x1?\['features'\]` must be a batch \[N, ...\] of at least one sample",
    ),
    "packed": (
        lambda: pack_sequence([torch.randn(3, 4), torch.randn(2, 4)]),
        TypeError,
        r"PackedSequence.*padded sequences and their lengths.*pack_padded_sequence",
    ),
    "packed inside": (
        lambda: {"x": pack_sequence([torch.randn(3, 4)])},
        TypeError,
        r"`x1?\['x'\]`.*PackedSequence",
    ),
    "graph": (Graph, TypeError, r"must be a torch.Tensor; got a .*Graph.*as a dict.*forward_fn"),
    "loader": (lambda: DataLoader(parts(3)[0]), TypeError, r"DataLoader.*one of its batches"),
    "dataset": (lambda: TensorDataset(*parts(3)), TypeError, r"Dataset.*one of its batches"),
    "array": (lambda: np.ones((3, 4)), TypeError, r"must be a torch.Tensor.*as_tensor"),
    "dtype": (
        with_entry(scale=torch.ones(3)),
        TypeError,
        r"`x1?\['scale'\]` must be of the model's dtype torch.float64",
    ),
    "complex": (
        with_entry(scale=torch.ones(3, dtype=torch.complex128)),
        TypeError,
        r"`x1?\['scale'\]` must be real",
    ),
    "sparse": (
        with_entry(features=torch.eye(3, 4, dtype=torch.float64).to_sparse()),
        TypeError,
        r"`x1?\['features'\]` must be a dense tensor",
    ),
    "meta": (
        with_entry(scale=torch.ones(3, device="meta", dtype=torch.float64)),
        TypeError,
        r"`x1?\['scale'\]` must be a tensor with data",
    ),
    "not finite": (
        with_entry(scale=torch.tensor([torch.inf, 1.0, 1.0], dtype=torch.float64)),
        ValueError,
        r"`x1?\['scale'\]` must be finite",
    ),
    "sealed": (
        lambda: Sealed(mapping(parts(3))),
        TypeError,
        r"made again with other tensors.*RuntimeError: sealed.*Pass a dict",
    ),
    "unknown key": (
        with_entry(labels=torch.ones(3, dtype=torch.long)),
        TypeError,
        r"`x1?` must be a batch whose keys are arguments of the model's forward\(features.*scale.*"
        r"mask.*got the keys \['features', 'scale', 'mask', 'labels'\].*'labels'",
    ),
    "missing key": (
        lambda: {"features": parts(3)[0]},
        TypeError,
        r"got the keys \['features'\] .*missing a required argument: 'scale'",
    ),
    "too many": (
        lambda: (*parts(3), parts(3)[0]),
        TypeError,
        r"a batch whose parts are arguments of the model's forward.*got 4 of them.*too many",
    ),
    "a key that is no name": (
        lambda: {0: parts(3)[0], **mapping(parts(3))},
        TypeError,
        r"`x1?` must be a batch whose keys are arguments",
    ),
}


@pytest.mark.parametrize(
    ("kind", "call"),
    [  # a plan does not depend on values
        (k, c) for k in BAD for c in CALLS if (k, c) != ("not finite", "explain")
    ],
)
def test_bad_batches(kind: str, call: str) -> None:
    batch, error, words = BAD[kind]
    net, given = built(OfParts), batch()
    with pytest.raises(error) as raised:
        CALLS[call](net, given)
    assert re.search(words, str(raised.value), re.DOTALL), str(raised.value)


def test_a_function_gets_its_own_error() -> None:
    def f(params: Any, batch: Any) -> Tensor:
        return params["w"] * batch["features"] * batch["name"]

    batch = {"features": torch.ones(3, 4), "name": ["a", None]}
    with pytest.raises(ValueError, match="fails with TypeError"):
        empirical_ntk(f, batch, params={"w": torch.ones(4)})


OTHER: dict[str, tuple[Any, str]] = {
    "form": (tuple(parts(2)), r"samples \(float64 \(4,\), float64 \(\), bool \(4,\)\)"),
    "container": (Encoding(mapping(parts(2))), r"samples Encoding\('features': float64 \(4,\)"),
    "order": (dict(reversed(mapping(parts(2)).items())), r"samples \{'mask': bool \(4,\), 'scale'"),
    "shape": (
        {**mapping(parts(2)), "mask": torch.ones(2, 1, dtype=torch.bool)},
        r"'mask': bool \(1,\)\}",
    ),
    "dtype": ({**mapping(parts(2)), "mask": torch.ones(2, 4)}, r"'mask': float64 \(4,\)\}"),
    "missing": ({"features": parts(2)[0]}, r"samples \{'features': float64 \(4,\)\}"),
    "tensor": (parts(2)[0], r"float64 samples of shape \(4,\)"),
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("call", ["empirical_ntk", "empirical_nngp"])
def test_x2_is_like_x1(kind: str, call: str) -> None:
    x2, words = OTHER[kind]
    given = {**mapping(parts(3))}
    with pytest.raises(
        ValueError, match=r"`x2` must be of samples like x1's.*'features'"
    ) as raised:
        CALLS[call](built(OfParts), given, x2, dtype=torch.float64)
    assert re.search(words, str(raised.value).split("; got")[1]), str(raised.value)


class Powers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor, power: Any) -> Tensor:
        return self.a(x) ** (power if isinstance(power, int) else int(power.sum()))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        *((1, 2, False), (2, 2, True), (2, 2.0, False)),
        *((np.ones(2), np.ones(2), True), (np.ones(2), np.ones(3), False)),
    ],
)
def test_constants_of_x2_are_those_of_x1(one: Any, other: Any, same: bool) -> None:
    net, x = built(Powers), parts(3)[0]
    call = lambda: empirical_ntk(net, {"x": x, "power": one}, {"x": x, "power": other})  # noqa: E731
    if same:
        assert torch.allclose(call(), empirical_ntk(net, {"x": x, "power": one}))
    else:
        with pytest.raises(ValueError, match=r"`x2`.*like x1"):
            call()


def test_arrays_with_rows_are_not_taken_apart_silently() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor, more: Any) -> Tensor:
            return torch.tanh(self.a(x) + torch.as_tensor(more))

    with pytest.raises(ValueError, match="`model`"):
        empirical_ntk(built(Adds), {"x": parts(3)[0], "more": np.ones((3, 1))})


def test_a_model_without_samples_on_its_first_axis() -> None:
    class Transposed(OfParts):
        def forward(self, features: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            return super().forward(features, scale, mask).T

    with pytest.raises(ValueError, match=r"`model`.*one row of outputs per sample"):
        empirical_ntk(built(Transposed), mapping(parts(3)))
