"""Arguments that make no sense are refused by name, and nothing is changed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from traces import snapshot

from torch_ntk import empirical_nngp, empirical_ntk

X = torch.linspace(-1.0, 1.0, 15).reshape(3, 5)
LINEAR = nn.Linear(5, 2)
EMBEDDING = nn.Embedding(7, 2)
ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "output": (
        {"output": "sum"},
        ValueError,
        "`output` must be one of 'full'.*'pseudo', 'probed'; got 'sum'",
    ),
    "method": ({"method": "fast"}, ValueError, "`method` must be one of 'auto'"),
    "batch_size_zero": ({"batch_size": 0}, ValueError, "`batch_size`"),
    "batch_size_float": ({"batch_size": 2.0}, TypeError, "`batch_size`"),
    "dtype": ({"dtype": torch.float16}, ValueError, "`dtype`.*torch.float16"),
    "dtype_string": ({"dtype": "float32"}, ValueError, "`dtype`.*'float32'"),
    "x1_list": ({"x1": [[1.0] * 5]}, TypeError, "`x1` must be a torch.Tensor.*as_tensor"),
    "x1_none": ({"x1": None}, TypeError, "`x1`"),
    "x1_scalar": ({"x1": torch.tensor(1.0)}, ValueError, "`x1`.*batch"),
    "x1_empty": ({"x1": X[:0]}, ValueError, "`x1`.*at least one sample"),
    "x1_no_features": ({"x1": X[:, :0]}, ValueError, "`x1`"),
    "x1_no_batch": ({"x1": X[0]}, ValueError, "`x1`.*shape \\(\\)"),
    "x1_wide": ({"x1": torch.ones(3, 6)}, ValueError, "`x1`.*shape \\(6,\\).*forward fails"),
    "x1_double": ({"x1": X.double()}, TypeError, "`x1`.*dtype torch.float32.*float64 tensor"),
    "x1_integers": ({"x1": torch.ones(3, 5, dtype=torch.long)}, TypeError, "`x1`.*floating-point"),
    "x1_complex": ({"x1": X + 1j}, TypeError, "`x1` must be real"),
    "x1_nan": ({"x1": X.masked_fill(X > 0.9, math.nan)}, ValueError, "`x1` must be finite.*1 NaN"),
    "x1_infinite": ({"x1": X.masked_fill(X > 0.9, math.inf)}, ValueError, "`x1`.*1 infinite"),
    "x1_meta": ({"x1": X.to("meta")}, TypeError, "`x1`.*meta"),
    "x1_sparse": ({"x1": X.to_sparse()}, TypeError, "`x1`.*dense"),
    "x1_nested": (
        {"x1": torch.nested.nested_tensor([X[0], X[1, :1]], layout=torch.jagged)},
        TypeError,
        "`x1`.*nested.*to_padded_tensor",
    ),
    "x2_list": ({"x2": [[1.0] * 5]}, TypeError, "`x2`"),
    "x2_empty": ({"x2": X[:0]}, ValueError, "`x2`"),
    "x2_wide": ({"x2": torch.ones(3, 6)}, ValueError, "`x2`.*like x1's"),
    "x2_double": ({"x2": X.double()}, TypeError, "`x2`"),
    "x2_meta": ({"x2": X.to("meta")}, TypeError, "`x2`"),
    "x2_nan": ({"x2": X.masked_fill(X > 0.9, math.nan)}, ValueError, "`x2` must be finite"),
    "x2_integers": ({"x2": torch.ones(3, 5, dtype=torch.long)}, ValueError, "`x2`"),
    "indices_as_floats": ({"model": EMBEDDING, "x1": X}, ValueError, "`x1`.*float32 samples"),
    "indices_too_large": ({"model": EMBEDDING, "x1": torch.tensor([9, 1])}, ValueError, "`x1`"),
    "params_string": ({"params": "weight"}, TypeError, "`params`.*list of names"),
    "params_number": ({"params": 3}, TypeError, "`params`"),
    "params_empty": ({"params": []}, ValueError, "`params` must be at least one name"),
    "params_unknown": ({"params": ["weigth"]}, ValueError, "'weigth'.*'weight', 'bias'"),
    "params_not_a_name": ({"params": [LINEAR.weight]}, TypeError, "`params` must be names"),
    "params_twice": ({"params": ["weight", "weight"]}, ValueError, "`params`.*Each parameter"),
    "params_none_selected": ({"params": lambda n, p: False}, ValueError, "`params`.*none of 2"),
    "params_dictionary": ({"params": {"weight": LINEAR.weight}}, TypeError, "functional_call"),
    "function_alone": ({"model": lambda p, x: x}, TypeError, "`params` must be a dictionary"),
    "function_and_names": ({"model": lambda p, x: x, "params": ["w"]}, TypeError, "`params`"),
    "function_and_no_tensors": (
        {"model": lambda p, x: x, "params": {"w": 1.0}},
        TypeError,
        r"`params\['w'\]` must be a torch.Tensor",
    ),
    "function_and_integers": (
        {"model": lambda p, x: x, "params": {"w": torch.tensor(1)}},
        TypeError,
        r"`params\['w'\]` must be floating-point",
    ),
    "function_and_nan": (
        {"model": lambda p, x: x, "params": {"w": torch.tensor(math.nan)}},
        ValueError,
        r"`params\['w'\]` must be finite",
    ),
    "function_and_meta": (
        {"model": lambda p, x: x, "params": {"w": torch.ones(1, device="meta")}},
        TypeError,
        r"`params\['w'\]`.*meta",
    ),
    "function_and_two_dtypes": (
        {"model": lambda p, x: x, "params": {"w": torch.ones(1), "v": torch.ones(1).double()}},
        ValueError,
        "`params` must be of one dtype",
    ),
}


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_arguments_are_refused(name: str) -> None:
    given, error, pattern = ARGUMENTS[name]
    before = snapshot(LINEAR, X)
    arguments = {"model": LINEAR, "x1": X, **given}
    with pytest.raises(error, match=f"(?s){pattern}"):
        empirical_ntk(**arguments)
    if not given.keys() & {"output", "method"} and "params" not in given:
        with pytest.raises(error, match=f"(?s){pattern}"):
            empirical_nngp(**arguments)
    assert snapshot(LINEAR, X) == before


def test_tied_names_count_once() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'0.weight', '1.weight', some of which are the same"):
        empirical_ntk(model, X, params=["0.weight", "1.weight"])


def test_overflow_of_half_precision() -> None:
    model = nn.Linear(5, 2).half()
    with pytest.raises(ValueError, match=r"`kernel` must be finite.*range of torch.float16"):
        empirical_ntk(model, (300 * X).half())
