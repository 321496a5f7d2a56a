"""Every method on every model of the table, against plain autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, Case, by_name
from oracles import contract_full, ntk_loop, relative_error
from torch import Tensor, nn
from traces import in_training, snapshot

from torch_ntk import empirical_ntk

METHODS = ["structured", "jacobian", "vector_product"]


def expected_parts(model: nn.Module, j1: Tensor, j2: Tensor) -> dict[str, Tensor]:
    """From whole Jacobians, whose columns follow `model.parameters()`."""
    parts, start = {}, 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            columns = slice(start, start + p.numel())
            full = contract_full(j1[..., columns], j2[..., columns])
            parts[name.replace("_orig_mod.", "")] = full
            start += p.numel()
    return parts


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_autograd(case: Case, method: str, oracle) -> None:
    """Between two sets and of one, whole and in parts; and each call leaves no trace."""
    model, x1, x2 = in_training(case), case.inputs(4), case.inputs(3, 1)
    j1, j2 = oracle(case)
    before = snapshot(model, x1, x2)

    cross = empirical_ntk(model, x1, x2, method=method, **case.options)
    assert snapshot(model, x1, x2) == before
    assert cross.dtype == torch.float64
    expected = contract_full(j1, j2)
    assert relative_error(cross, expected) < 1e-10

    symmetric = empirical_ntk(model, x1, method=method, **case.options)
    assert snapshot(model, x1, x2) == before
    assert relative_error(symmetric, contract_full(j1, j1)) < 1e-10
    assert torch.equal(symmetric, symmetric.permute(1, 0, 3, 2))

    if case.slow and method == "vector_product":
        return  # a pass for each of hundreds of parameters
    parts = empirical_ntk(model, x1, x2, method=method, by="parameter", **case.options)
    wanted = expected_parts(model, j1, j2)
    assert list(parts) == list(wanted)
    for name, part in parts.items():
        error = float((part.cpu() - wanted[name]).abs().max())
        assert error < 1e-10 * float(expected.abs().max()), name
    assert relative_error(sum(parts.values()), cross) < 1e-12


def test_agrees_in_float32(case: Case, oracle) -> None:
    """By the structured method and one of the others in turn."""
    j1, j2 = oracle(case)
    expected = contract_full(j1, j2)
    model = case.build().float()
    x1, x2 = (case.inputs(n, seed, dtype=torch.float32) for n, seed in ((4, 0), (3, 1)))
    other = METHODS[1 + CASES.index(case) % 2]
    for method in ["structured"] if case.slow else ["structured", other]:
        kernel = empirical_ntk(model, x1, x2, method=method, **case.options)
        assert kernel.dtype == torch.float32
        assert relative_error(kernel, expected) < 1e-5
    # The same in float64, from the float32 model; the weights themselves were rounded.
    options = {"method": method, **case.options}
    precise = empirical_ntk(model, x1, x2, dtype=torch.float64, **options)
    assert precise.dtype == torch.float64
    assert relative_error(precise, expected) < 1e-5


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


def test_float64_of_a_float32_model_is_float64_throughout() -> None:
    class Scaled(torch.nn.Module):
        """A scale and a shift by numbers that float32 does not hold exactly."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.tensor(1.5))
            self.shift = torch.nn.Parameter(torch.rand(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.scale * torch.tanh(self.layer(x))
            return torch.tanh(torch.add(h, self.shift, alpha=0.3))

    model, x = Scaled(), torch.randn(5, 4)
    twin = copy.deepcopy(model).double()
    for method in ("auto", "jacobian", "vector_product"):
        parts = empirical_ntk(model, x, dtype=torch.float64, method=method, by="parameter")
        for name, part in parts.items():
            expected = ntk_loop(twin, x.double(), x.double(), [name])
            assert relative_error(part, expected) < 1e-13
