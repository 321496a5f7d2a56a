"""Every method on every model of the table, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from cases import Case, by_name
from oracles import contract_full, reduced, relative_error

from torch_ntk import empirical_ntk

METHODS = ["structured", "jacobian", "vector_product"]
OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_autograd(case: Case, method: str, output: str, oracle) -> None:
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    if method == "vector_product" and case.no_forward_mode:
        with pytest.raises(ValueError, match=case.no_forward_mode):
            empirical_ntk(model, x1, x2, output=output, method=method)
        return
    j1, j2 = oracle(case)

    cross = empirical_ntk(model, x1, x2, output=output, method=method)
    assert cross.dtype == torch.float64
    assert relative_error(cross, reduced(contract_full(j1, j2), output)) < 1e-10

    symmetric = empirical_ntk(model, x1, output=output, method=method)
    assert relative_error(symmetric, reduced(contract_full(j1, j1), output)) < 1e-10
    mirrored = symmetric.permute(1, 0, 3, 2) if output == "full" else symmetric.transpose(0, 1)
    assert torch.equal(symmetric, mirrored)


@pytest.mark.parametrize("method", METHODS)
def test_agrees_in_float32(case: Case, method: str, oracle) -> None:
    if method == "vector_product" and case.no_forward_mode:
        method = "auto"
    j1, j2 = oracle(case)
    expected = contract_full(j1, j2)
    model, x1, x2 = case.build().float(), case.inputs(4), case.inputs(3, 1)
    if x1.is_floating_point():
        x1, x2 = x1.float(), x2.float()
    kernel = empirical_ntk(model, x1, x2, method=method)
    tolerance = 1e-4 if case.is_heavy else 1e-5  # rounding grows with depth
    assert kernel.dtype == torch.float32
    assert relative_error(kernel, expected) < tolerance
    # The same in float64, from the float32 model; the weights themselves were rounded.
    precise = empirical_ntk(model, x1, x2, method=method, dtype=torch.float64)
    assert precise.dtype == torch.float64
    assert relative_error(precise, expected) < tolerance


@pytest.mark.parametrize("output", OUTPUTS)
def test_auto_is_right(case: Case, output: str, oracle) -> None:
    j1, j2 = oracle(case)
    kernel = empirical_ntk(case.build(), case.inputs(4), case.inputs(3, 1), output=output)
    assert relative_error(kernel, reduced(contract_full(j1, j2), output)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "batchnorm2d", "gru", "item_on_data"])
def test_single_samples(name: str, method: str, oracle) -> None:
    case = by_name(name)
    j1, j2 = oracle(case)
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    one = empirical_ntk(model, x1[:1], method=method)
    assert relative_error(one, contract_full(j1[:1], j1[:1])) < 1e-10
    row = empirical_ntk(model, x1[:1], x2, method=method)
    assert relative_error(row, contract_full(j1[:1], j2)) < 1e-10
    column = empirical_ntk(model, x1, x2[:1], method=method)
    assert relative_error(column, contract_full(j1, j2[:1])) < 1e-10
