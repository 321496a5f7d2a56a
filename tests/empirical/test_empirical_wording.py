"""Mistakes that are easy to make are named as what they are."""

from __future__ import annotations

import pytest
import torch
from oracles import relative_error
from torch import nn

import torch_ntk
from torch_ntk import MLP, empirical_nngp, empirical_ntk

METHODS = ["auto", "structured", "jacobian", "vector_product"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("partly", [False, True])
def test_a_function_that_reaches_its_parameters_by_itself(method: str, partly: bool) -> None:
    layer, x = nn.Linear(6, 3), torch.randn(2, 6)
    params = dict(layer.named_parameters())

    def closure(p, z):
        return z @ layer.weight.T + p["bias"] if partly else layer(z)

    with pytest.raises(ValueError, match=r"through a closure.*functional_call"):
        empirical_ntk(closure, x, params=params, method=method)


def test_a_closure_over_another_network_is_a_constant() -> None:
    backbone, head, x = nn.Linear(6, 4), nn.Linear(4, 3), torch.randn(2, 6)
    params = dict(head.named_parameters())

    def f(p, z):
        return torch.func.functional_call(head, p, (backbone(z),))

    kernel = empirical_ntk(f, x, params=params)
    with torch.no_grad():
        expected = empirical_ntk(head, backbone(x))
    assert relative_error(kernel, expected) < 1e-5


def test_tensors_instead_of_names() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match="names of parameters; got a list with 2 tensors"):
        empirical_ntk(model, torch.randn(2, 2), params=list(model.parameters()))


def test_a_predicate_of_one_argument() -> None:
    with pytest.raises(TypeError, match=r"two arguments, \(name, tensor\)"):
        empirical_ntk(nn.Linear(2, 1), torch.randn(2, 2), params=lambda name: True)


def test_a_class_instead_of_a_module() -> None:
    with pytest.raises(TypeError, match=r"the class MLP.*MLP\(\.\.\.\)"):
        empirical_ntk(MLP, torch.randn(2, 2))


def test_a_function_with_its_arguments_exchanged() -> None:
    w = {"w": torch.randn(2, 1)}
    with pytest.raises(ValueError, match=r"called as f\(params, x\)"):
        empirical_ntk(lambda x, p: x @ p["w"], torch.randn(2, 2), params=w)


def test_progress_is_a_flag() -> None:
    with pytest.raises(TypeError, match="`progress` must be True or False"):
        empirical_ntk(nn.Linear(2, 1), torch.randn(2, 2), progress="yes")


def test_nngp_of_a_module_without_parameters() -> None:
    x = torch.randn(4, 2, 3)
    expected = x.flatten(1) @ x.flatten(1).T / 6
    assert relative_error(empirical_nngp(nn.Flatten(), x), expected) < 1e-6
    norm = nn.BatchNorm1d(3, affine=False)
    y = torch.randn(4, 3)
    assert relative_error(empirical_nngp(norm, y), norm.eval()(y) @ norm(y).T / 3) < 1e-5


def test_a_star_import_leaves_nn_alone() -> None:
    names: dict[str, object] = {}
    exec("from torch import nn\nfrom torch_ntk import *", names)
    assert names["nn"] is nn
    assert set(torch_ntk.__all__) <= set(names)
