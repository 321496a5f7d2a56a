"""Kernels on flat rows against the kernels that they stand for."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk import CNTK, NTKConv2d, NTKLinear, analytic_nngp, analytic_ntk, mlp_kernels
from torch_ntk.integrations import RowKernel

GENERATOR = torch.Generator().manual_seed(1)
X1 = torch.randn(11, 16, generator=GENERATOR, dtype=torch.float64)
X2 = torch.randn(5, 16, generator=GENERATOR, dtype=torch.float64)


def images(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.reshape(-1, 1, 4, 4)


def convolutional() -> nn.Module:
    return nn.Sequential(NTKConv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), NTKLinear(48, 2))


def rbf(a: Tensor, b: Tensor | None = None) -> Tensor:
    return torch.exp(-(torch.cdist(a, a if b is None else b) ** 2) / 16)


NET = convolutional()
ORDINARY = nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))
KINDS: dict[str, tuple[RowKernel, Any]] = {
    "mlp ntk": (RowKernel(mlp_kernels), lambda a, b: mlp_kernels(a, b).ntk),
    "mlp nngp": (
        RowKernel(partial(mlp_kernels, depth=2, activation="erf"), which="nngp"),
        lambda a, b: mlp_kernels(a, b, 2, "erf").nngp,
    ),
    "cntk": (
        RowKernel(CNTK(3, pooling="gap"), input_shape=(1, 4, 4)),
        lambda a, b: CNTK(3, pooling="gap")(images(a), images(b)),
    ),
    "lifted ntk": (
        RowKernel(NET, input_shape=(1, 4, 4)),
        lambda a, b: analytic_ntk(NET, images(a), images(b)),
    ),
    "lifted nngp": (
        RowKernel(NET, input_shape=[1, 4, 4], which="nngp"),
        lambda a, b: analytic_nngp(NET, images(a), images(b)),
    ),
    "ordinary": (
        RowKernel(ORDINARY, standard="torch"),
        lambda a, b: analytic_ntk(ORDINARY, a, b, standard="torch"),
    ),
    "ordinary nngp": (
        RowKernel(ORDINARY, which="nngp", standard={"": (1.3, 0.2)}),
        lambda a, b: analytic_nngp(ORDINARY, a, b, standard=(1.3, 0.2)),
    ),
    "function": (RowKernel(rbf), rbf),
}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    kernel, expected = KINDS[name]
    assert torch.equal(kernel(X1), expected(X1, None))
    assert torch.equal(kernel(X1, X2), expected(X1, X2))


@pytest.mark.parametrize("name", KINDS)
def test_diagonals(name: str) -> None:
    """More samples than one block holds; the second inputs the same and others."""
    kernel, expected = KINDS[name]
    other = X1.flip(0)
    assert torch.allclose(kernel.diagonal(X1), expected(X1, None).diagonal(), rtol=1e-12)
    assert torch.allclose(kernel.diagonal(X1, other), expected(X1, other).diagonal(), rtol=1e-12)
    assert kernel.diagonal(X1[:0]).shape == (0,)


def test_no_matrix_is_formed_for_a_diagonal() -> None:
    shapes = []

    def watched(a: Tensor, b: Tensor | None = None) -> Tensor:
        shapes.append(len(a))
        return rbf(a, b)

    RowKernel(watched).diagonal(torch.randn(100, 3))
    assert sum(shapes) == 100
    assert max(shapes) <= 8


def test_the_dtype_is_that_of_the_rows() -> None:
    found = RowKernel(mlp_kernels)(X1.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), mlp_kernels(X1).ntk, rtol=1e-5)


def test_which_kernels_cannot_change() -> None:
    assert KINDS["cntk"][0].is_analytic
    assert KINDS["lifted ntk"][0].is_analytic
    assert not KINDS["function"][0].is_analytic


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kernel": 3}, TypeError, "`kernel` must be a network of NTK layers"),
        ({"kernel": CNTK}, TypeError, "`kernel` must be a network of NTK layers"),
        ({"kernel": rbf, "which": "ck"}, ValueError, "`which` must be one of 'ntk', 'nngp'"),
        ({"kernel": CNTK(2), "which": "nngp"}, ValueError, "`which` must be 'ntk' for a CNTK"),
        ({"kernel": rbf, "standard": "torch"}, ValueError, "`standard` must be None for a kernel"),
        ({"kernel": CNTK(2), "standard": "torch"}, ValueError, "`standard` must be None for"),
        ({"kernel": rbf, "input_shape": 16}, TypeError, "`input_shape` must be a sequence"),
        ({"kernel": rbf, "input_shape": "16"}, TypeError, "`input_shape` must be"),
        ({"kernel": rbf, "input_shape": (4, 0)}, ValueError, "`input_shape` must be a positive"),
    ],
)
def test_refused_when_made(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RowKernel(**options)


@pytest.mark.parametrize(
    ("kernel", "x2", "error", "text"),
    [
        (RowKernel(rbf, input_shape=(3, 4)), None, ValueError, "`input_shape` must be a shape of"),
        (RowKernel(rbf), X2[None], ValueError, "`x2` must be rows"),
        (RowKernel(rbf, which="nngp"), None, ValueError, "`which` must be 'ntk' for a function"),
        (RowKernel(lambda a, b=None: a), None, ValueError, "`kernel` must be a function that ret"),
        (RowKernel(lambda a, b=None: 1), None, TypeError, "`kernel` must be a function that ret"),
        (RowKernel(lambda a, b=None: rbf(a) / 0), None, ValueError, "`kernel` must be finite"),
        (RowKernel(nn.Linear(16, 1)), None, ValueError, "ntk_parameterize"),
    ],
)
def test_refused_when_called(
    kernel: RowKernel, x2: Tensor | None, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        kernel(X1, x2)


def test_a_diagonal_needs_as_many_rows() -> None:
    with pytest.raises(ValueError, match="`x2` must be as many rows as x1"):
        RowKernel(rbf).diagonal(X1, X2)
