"""The parts of a kernel, by parameter and by module, and their sum."""

from __future__ import annotations

import pytest
import torch
from cases import by_name
from oracles import reduced, relative_error
from test_empirical_values import expected_parts
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk._functional import CannotTransformError
from torch_ntk.empirical.structured import _kernel

METHODS = ["structured", "jacobian", "vector_product", "auto"]
OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


def check(parts: dict[str, Tensor], expected: dict[str, Tensor], scale: float) -> None:
    assert list(parts) == list(expected)
    for name, part in parts.items():
        assert part.shape == expected[name].shape
        assert float((part.cpu() - expected[name].cpu()).abs().max()) < 1e-10 * scale


NAMES = ["mlp", "tied_weights", "batchnorm2d"]
COMBINATIONS = [
    (NAMES[(i + k) % len(NAMES)], method, output)
    for i, method in enumerate(METHODS)
    for k, output in enumerate(OUTPUTS)
]


@pytest.mark.parametrize(("name", "method", "output"), COMBINATIONS)
def test_all_outputs_and_blocks(name: str, method: str, output: str, oracle) -> None:
    case = by_name(name)
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    j1, j2 = oracle(case)
    for size, other, j in ((None, x2, j2), (3, x2, j2), (3, None, j1)):
        arguments = {"output": output, "method": method, "batch_size": size}
        full = expected_parts(model, j1, j)
        expected = {name: reduced(part, output) for name, part in full.items()}
        scale = float(sum(expected.values()).abs().max())
        parts = empirical_ntk(model, x1, other, by="parameter", **arguments)
        check(parts, expected, scale)
        modules: dict[str, Tensor] = {}
        for parameter, part in expected.items():
            module = parameter.rpartition(".")[0]
            modules[module] = modules[module] + part if module in modules else part
        check(empirical_ntk(model, x1, other, by="module", **arguments), modules, scale)
        if other is None:
            mirrored = {
                k: p.permute(1, 0, 3, 2) if p.ndim == 4 else p.transpose(0, 1)
                for k, p in parts.items()
            }
            assert all(torch.equal(p, mirrored[k]) for k, p in parts.items())


def test_names() -> None:
    tied = by_name("tied_weights")
    parts = empirical_ntk(tied.build(), tied.inputs(3), by="parameter")
    assert list(parts) == ["first.weight", "first.bias", "second.bias", "last.weight", "last.bias"]
    modules = empirical_ntk(tied.build(), tied.inputs(3), by="module")
    assert list(modules) == ["first", "second", "last"]
    functional = by_name("functional")
    parts = empirical_ntk(functional.build(), functional.inputs(3), by="parameter")
    assert list(parts) == ["w", "scale", "unused"]
    assert not parts["unused"].any()
    assert list(empirical_ntk(functional.build(), functional.inputs(3), by="module")) == [""]
    compiled = by_name("compiled")
    parts = empirical_ntk(compiled.build(), compiled.inputs(3), by="parameter")
    assert list(parts) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("method", METHODS)
def test_selected_parameters_only(method: str) -> None:
    case = by_name("mlp")
    model, x = case.build(), case.inputs(3)
    every = empirical_ntk(model, x, by="parameter", method=method)
    some = empirical_ntk(model, x, by="parameter", method=method, params=["2.weight", "0.bias"])
    assert set(some) == {"2.weight", "0.bias"}
    for name, part in some.items():
        assert relative_error(part, every[name]) < 1e-12


def test_functions_have_parts_too() -> None:
    x, w = torch.randn(4, 3).double(), torch.randn(3, 2).double()
    params = {"a.w": w, "a.b": w[0].clone(), "c": w[1].clone()}

    def f(p, z):
        return z @ p["a.w"] * p["c"] + p["a.b"]

    whole = empirical_ntk(f, x, params=params)
    parts = empirical_ntk(f, x, params=params, by="module")
    assert list(parts) == ["a", ""]
    assert relative_error(sum(parts.values()), whole) < 1e-12


def test_half_precision_and_the_plan_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).bfloat16()
    parts = empirical_ntk(model, torch.randn(3, 5).bfloat16(), by="module")
    assert {p.dtype for p in parts.values()} == {torch.bfloat16}

    def fails(*_: object) -> None:
        raise CannotTransformError("no batching rule")

    case = by_name("mlp")
    expected = empirical_ntk(case.build(), case.inputs(3), by="parameter")
    monkeypatch.setattr(_kernel, "cotangents", fails)
    for method in ("structured", "auto"):
        parts = empirical_ntk(case.build(), case.inputs(3), by="parameter", method=method)
        assert all(relative_error(p, expected[k]) < 1e-12 for k, p in parts.items())


def test_a_wrong_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="`by` must be one of 'parameter', 'module'; got 'layer'"):
        empirical_ntk(nn.Linear(3, 2), torch.randn(2, 3), by="layer")
