"""Buffers are as before after a refusal, also of a function over a module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import Net, built, inputs, said
from torch import Tensor, nn
from torch.func import functional_call
from traces import snapshot

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, linearize

X = inputs(4, 4)


def _normalized() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2))
    net(torch.randn(8, 4))
    return net


def _reaching(net: nn.Module) -> Callable[..., Tensor]:
    """A function that leaves out the parameters it is given."""
    return lambda params, x: net(x)


def _function(net: nn.Module) -> Callable[..., Tensor]:
    return lambda params, x: functional_call(net, params, (x,))


def _failing(net: nn.Module) -> Callable[..., Tensor]:
    def f(params: dict[str, Tensor], x: Tensor) -> Tensor:
        functional_call(net, params, (x,))
        raise RuntimeError("shapes")

    return f


def _stubborn(net: nn.Module) -> Callable[..., Tensor]:
    def f(params: dict[str, Tensor], x: Tensor) -> Tensor:
        net.train()  # whatever flags were set
        return functional_call(net, params, (x,))

    return f


FUNCTIONS = {f.__name__: f for f in (_reaching, _function, _failing, _stubborn)}


@pytest.mark.parametrize("method", ["auto", "jacobian", "vector_product"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_over_a_module_in_train_mode(name: str, method: str) -> None:
    net = built(_normalized)
    params = dict(net.named_parameters())
    f = FUNCTIONS[name](net)
    before = snapshot(net, X)
    refused = said(lambda: empirical_ntk(f, X, params=params, method=method))  # type: ignore
    assert snapshot(net, X) == before
    assert refused or name == "_function"  # in eval mode that one has a kernel


def test_other_functions_of_the_library() -> None:
    net = built(_normalized)
    params, f = dict(net.named_parameters()), _function(net)
    before = snapshot(net, X)
    said(lambda: empirical_nngp(f, X, params=params))
    said(lambda: NTKOperator(f, X, params=params) @ torch.ones(8, dtype=X.dtype))
    assert snapshot(net, X) == before


class Hidden(Net):
    """Its normalization is no submodule, so that no flag of its own reaches it."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: net.b(net.norms[0](net.a(x))))
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
        self.norms = [nn.BatchNorm1d(5, affine=False).double()]


def test_normalization_in_a_list() -> None:
    net = built(Hidden)
    before = snapshot(net.norms[0], X)
    for call in (empirical_ntk, empirical_nngp):
        assert said(lambda call=call: call(net, X)), "its samples are coupled"  # type: ignore
        assert snapshot(net.norms[0], X) == before
    assert "statistics of the batch" in said(lambda: linearize(net)(X))
    assert snapshot(net.norms[0], X) == before


def test_refused_module() -> None:
    net = built(lambda: nn.Sequential(_normalized(), nn.BatchNorm1d(2, track_running_stats=False)))
    before = snapshot(net, X)
    for method in ("auto", "jacobian", "vector_product"):
        assert said(lambda m=method: empirical_ntk(net, X, method=m))  # type: ignore[misc]
    assert snapshot(net, X) == before
