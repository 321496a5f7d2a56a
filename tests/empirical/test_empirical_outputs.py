"""Every value of `output` but the full kernel, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from cases import Case, by_name
from oracles import contract_full, reduced, relative_error

from torch_ntk import empirical_ntk

OUTPUTS = ["trace", "mean", "diagonal", "pseudo"]


def test_every_output_of_the_structured_method(case: Case, oracle) -> None:
    """With the contractions that it chooses for each of them."""
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    j1, j2 = oracle(case)
    for output in OUTPUTS:
        options = {"output": output, "method": "structured", **case.options}
        cross = empirical_ntk(model, x1, x2, **options)
        assert relative_error(cross, reduced(contract_full(j1, j2), output)) < 1e-10
        symmetric = empirical_ntk(model, x1, **options)
        assert relative_error(symmetric, reduced(contract_full(j1, j1), output)) < 1e-10
        assert torch.equal(symmetric, symmetric.transpose(0, 1))


@pytest.mark.parametrize("method", ["jacobian", "vector_product", "auto"])
@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "conv_groups_dilation", "gru", "tied_weights", "as_many_outputs_as_samples"),
        *("outputs_of_two_dimensions", "scalar_outputs", "function_of_the_old_kind"),
    ],
)
def test_every_output_of_other_methods(name: str, method: str, oracle) -> None:
    """They take it from the same Jacobians, or by the same products, whatever the model."""
    case = by_name(name)
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    j1, j2 = oracle(case)
    for output in OUTPUTS:
        cross = empirical_ntk(model, x1, x2, output=output, method=method)
        assert relative_error(cross, reduced(contract_full(j1, j2), output)) < 1e-10
        symmetric = empirical_ntk(model, x1, output=output, method=method)
        assert relative_error(symmetric, reduced(contract_full(j1, j1), output)) < 1e-10
        assert torch.equal(symmetric, symmetric.transpose(0, 1))
