"""Products with J P Jᵀ that is never formed, and what an operator makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import by_name
from oracles import contract_full, reduced, relative_error
from preconditions import scales, times_root
from test_operator_products import as_matrix
from torch import Tensor, nn

from torch_ntk import NTKOperator, empirical_ntk

# Products by forward mode, by two backward passes, and from Jacobians.
NAMES = ["mlp", "conv_transpose_maxpool", "tied_embedding", "function_of_the_old_kind", "lstm"]


@pytest.mark.parametrize("kind", ["even", "varied"])
@pytest.mark.parametrize("name", [*NAMES, "embedding_bag_max"])
def test_products(name: str, kind: str, oracle) -> None:
    """Of one set of samples and of two, whole and in few vectors and samples at a time."""
    case = by_name(name)
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    p = scales(model, kind)
    j1, j2 = (times_root(j, p) for j in oracle(case))
    for output in ("full", "mean", "pseudo"):
        options: dict[str, Any] = {"output": output, "precondition": p, "batch_size": 3}
        square = as_matrix(reduced(contract_full(j1, j1), output))
        v = torch.randn(len(square), 3, dtype=torch.float64)
        theta = NTKOperator(model, x1, **options)
        assert relative_error(theta @ v, square @ v) < 1e-10
        assert relative_error(theta.to_dense(), square) < 1e-10
        assert relative_error(theta.diagonal(), square.diagonal()) < 1e-10
        cross = reduced(contract_full(j1, j2), output)
        if output == "full":
            cross = cross.permute(0, 2, 1, 3).reshape(j1.shape[0] * j1.shape[1], -1)
        between = NTKOperator(model, x1, x2, **options)
        assert relative_error(between @ v[: cross.shape[1]], cross @ v[: cross.shape[1]]) < 1e-10
        assert relative_error(between.T @ v, cross.T @ v) < 1e-10


def _case() -> tuple[nn.Module, Tensor, dict[str, Tensor], Tensor]:
    model, x = by_name("mlp").build(), by_name("mlp").inputs(4)
    p = scales(model, "varied")
    return model, x, p, as_matrix(empirical_ntk(model, x, precondition=p))


def test_what_is_made_of_products() -> None:
    model, x, p, matrix = _case()
    theta = NTKOperator(model, x, precondition=p)
    y = torch.randn(12, dtype=torch.float64)
    ridge = matrix + 0.1 * matrix.trace() / 12 * torch.eye(12, dtype=torch.float64)
    assert relative_error(theta.solve(y, 0.1).x, torch.linalg.solve(ridge, y)) < 1e-6
    top = torch.linalg.eigvalsh(matrix)[-2:].flip(0)
    assert relative_error(theta.eigsh(2).values.sort(descending=True).values, top) < 1e-8
    found = theta.trace(n_samples=400)  # by squared norms, with P in them
    assert abs(found.estimate - float(matrix.trace())) < 4 * found.standard_error


def test_the_jacobian_is_the_derivative_itself(oracle) -> None:
    model, x, p, _ = _case()
    j = oracle(by_name("mlp"))[0].reshape(12, -1)
    jacobian = NTKOperator(model, x, precondition=p).jacobian
    assert relative_error(jacobian.T @ torch.eye(12, dtype=torch.float64), j.T) < 1e-10


def test_coupled_rows() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, p = torch.randn(5, 3, dtype=torch.float64), scales(model, "odd")
    how: dict[str, Any] = {"coupled": True, "training": True, "precondition": p}
    for output in ("full", "mean"):
        matrix = as_matrix(empirical_ntk(model, x, output=output, **how))
        theta = NTKOperator(model, x, output=output, **how)
        v = torch.randn(len(matrix), dtype=torch.float64)
        assert relative_error(theta @ v, matrix @ v) < 1e-10
        assert relative_error(theta.diagonal(), matrix.diagonal()) < 1e-10


def test_a_snapshot_of_the_optimizer() -> None:
    model, x, _, _ = _case()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with pytest.raises(ValueError, match="`precondition` must be an optimizer that has taken"):
        NTKOperator(model, x, precondition=optimizer)
    model(x).square().sum().backward()
    optimizer.step()
    matrix = as_matrix(empirical_ntk(model, x, precondition=optimizer))
    theta = NTKOperator(model, x, precondition=optimizer)
    optimizer.step()
    assert relative_error(theta.to_dense(), matrix) < 1e-12
    v = torch.randn(12, dtype=torch.float64)
    assert relative_error(theta @ v, matrix @ v) < 1e-10
