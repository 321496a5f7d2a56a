"""What an operator multiplies, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import relative_error
from torch import nn

from torch_ntk import MLP
from torch_ntk.empirical import NTKOperator


def test_arrays() -> None:
    theta = NTKOperator(MLP([5, 8, 3]), torch.randn(4, 5))
    matrix = np.linspace(-1, 1, 24).reshape(12, 2)
    product = theta @ matrix
    assert isinstance(product, np.ndarray)
    assert (
        relative_error(torch.from_numpy(product), theta.to_dense() @ torch.tensor(matrix).float())
        < 1e-6
    )
    with pytest.raises(TypeError, match="unsupported operand"):
        matrix.T @ theta
    with pytest.raises(TypeError, match="`v` must be an array of real"):
        theta @ (matrix + 1j)


BAD = {
    "dtype": (torch.ones(12, dtype=torch.float64), TypeError, r"`v`.*float32.*v.to\(torch.float32"),
    "list": ([1.0] * 12, TypeError, "`v` must be a tensor"),
    "length": (torch.ones(11), ValueError, r"`v` must be a vector \[12\]"),
    "dimensions": (torch.ones(12, 1, 1), ValueError, "`v`"),
    "nan": (torch.full((12,), torch.nan), ValueError, "`v` must be finite"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_vectors(name: str) -> None:
    v, error, pattern = BAD[name]
    theta = NTKOperator(MLP([5, 8, 3]), torch.randn(4, 5))
    with pytest.raises(error, match=pattern):
        theta @ v


def test_bad_arguments() -> None:
    model, x = MLP([5, 8, 3]), torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"`output`.*'probed'; got 'diagonal'"):
        NTKOperator(model, x, output="diagonal")
    with pytest.raises(ValueError, match="`batch_size`"):
        NTKOperator(model, x, batch_size=0)
    with pytest.raises(TypeError, match="`progress`"):
        NTKOperator(model, x, progress=1)
    with pytest.raises(ValueError, match="`max_memory`"):
        NTKOperator(model, x, max_memory="much")
    with pytest.raises(ValueError, match="one sample at a time"):
        NTKOperator(nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2, track_running_stats=False)), x)


def test_derivatives_that_the_batch_couples_are_refused() -> None:
    """Outputs are those of single samples, derivatives are not."""

    def f(p, x):
        h = x @ p["w"]
        return h + (h.mean(0) - h.mean(0).detach())

    with pytest.raises(ValueError, match="derivatives of a sample that change with the other"):
        NTKOperator(f, torch.randn(4, 5), params={"w": torch.randn(5, 2)})
