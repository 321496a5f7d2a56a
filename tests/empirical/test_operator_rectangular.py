"""Operators between two sets of samples, against two loops of backward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import by_name
from oracles import contract_full, jacobian_loop, reduced, relative_error
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import MLP, NTKOperator

OUTPUTS = ["full", "trace", "mean", "pseudo"]
# One for each way of multiplying: in forward mode, by plain passes, with formed Jacobians.
NAMES = ["mlp", "gru", "gradient_stopped_by_no_grad", "embedding_bag_max"]


def as_matrix(kernel: Tensor) -> Tensor:
    if kernel.ndim == 2:
        return kernel
    n1, n2, o, _ = kernel.shape
    return kernel.permute(0, 2, 1, 3).reshape(n1 * o, n2 * o)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_products_and_the_matrix(name: str, output: str) -> None:
    case = by_name(name)
    model, x = case.build(), case.inputs(7)
    x1, x2 = x[:3], x[3:]
    j1, j2 = (jacobian_loop(case.build(), part) for part in (x1, x2))
    expected = as_matrix(reduced(contract_full(j1, j2), output))
    before = snapshot(model, x)
    theta = NTKOperator(model, x1, x2, output=output)
    assert theta.shape == expected.shape
    assert theta.T.shape == expected.T.shape
    right = torch.linspace(-1, 1, 2 * expected.shape[1], dtype=torch.float64).view(-1, 2)
    left = torch.linspace(-1, 2, 3 * expected.shape[0], dtype=torch.float64).view(-1, 3)
    assert relative_error(theta @ right, expected @ right) < 1e-10
    assert relative_error(theta @ right[:, 0], expected @ right[:, 0]) < 1e-10
    assert relative_error(theta.T @ left, expected.T @ left) < 1e-10
    assert relative_error(theta.to_dense(), expected) < 1e-10
    assert relative_error(theta.T.to_dense(), expected.T) < 1e-10
    assert relative_error(theta.T.T @ right, expected @ right) < 1e-10
    assert snapshot(model, x) == before


@pytest.mark.parametrize("output", ["full", "mean"])
def test_any_blocks(output: str) -> None:
    case = by_name("mlp")
    x = case.inputs(8)
    whole = NTKOperator(case.build(), x[:3], x[3:], output=output)
    v = torch.linspace(-1, 1, whole.shape[1], dtype=torch.float64)
    for size in (1, 2, 4):
        blocks = NTKOperator(case.build(), x[:3], x[3:], output=output, batch_size=size)
        assert relative_error(blocks @ v, whole @ v) < 1e-12


def test_the_transposed_shares_what_has_been_copied() -> None:
    model, x = MLP([5, 8, 3]).double(), torch.randn(7, 5, dtype=torch.float64)
    theta = NTKOperator(model, x[:3], x[3:])
    assert theta.T._map.fn is theta._map.fn
    assert theta.T._map.left is theta._map.right
    square = NTKOperator(model, x)
    assert square.T is square
    assert NTKOperator(model, x, x).T.shape == (21, 21)


def test_scipy() -> None:
    model, x = MLP([5, 8, 3]).double(), torch.randn(7, 5, dtype=torch.float64)
    theta = NTKOperator(model, x[:3], x[3:])
    dense, linear = theta.to_dense().numpy(), theta.to_scipy()
    v, w = np.linspace(-1, 1, 12), np.linspace(-1, 1, 18).reshape(9, 2)
    np.testing.assert_allclose(linear @ v, dense @ v, rtol=1e-10)
    np.testing.assert_allclose(linear.T @ w, dense.T @ w, rtol=1e-10)


def test_each_side_is_a_snapshot_and_watched() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(5, 2), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (self.scale if float(x.sum()) > 0 else 1.0)

    model, x2 = Scaled(), torch.ones(4, 5)
    theta = NTKOperator(model, -torch.ones(3, 5), x2)
    v = torch.ones(8)
    before = theta @ v
    x2.zero_()
    assert torch.equal(theta @ v, before)
    model.scale = 2.0  # which only samples of x2 tell
    with pytest.raises(RuntimeError, match="Make a new operator"):
        theta @ v


def test_what_is_refused() -> None:
    model, x = MLP([5, 8, 3]), torch.randn(7, 5)
    theta = NTKOperator(model, x[:3], x[3:])
    with pytest.raises(ValueError, match=r"`v` must be a vector \[12\]"):
        theta @ torch.ones(9)
    for method in ("eigsh", "trace"):
        with pytest.raises(ValueError, match=rf"`x2` must be None for {method}\(\).*\(9, 12\)"):
            getattr(theta, method)()
    with pytest.raises(ValueError, match="`x2` must be of samples like x1's"):
        NTKOperator(model, x, torch.randn(4, 6))
    with pytest.raises(ValueError, match="`x2` must be a batch"):
        NTKOperator(model, x, torch.tensor(1.0))


def test_samples_that_depend_on_each_other_on_the_second_side() -> None:
    """The first side has one sample alone, which depends on nothing."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            return h + (h.mean(0) - h.mean(0).detach())

    with pytest.raises(ValueError, match="change with the other"):
        NTKOperator(Centred(), torch.randn(1, 5), torch.randn(4, 5))
