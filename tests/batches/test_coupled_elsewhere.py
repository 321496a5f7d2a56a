"""`coupled=True` and `training=True` in what stands beside `empirical_ntk`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from coupled_cases import CASES, call, error, jacobian, made, normal
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, explain, verify
from torch_ntk.empirical import _result_size


def expected(j1: Tensor, j2: Tensor, output: str) -> Tensor:
    """The matrix `[D1, D2]` of Jacobians `[N, O, P]`."""
    if output == "full":
        return j1.flatten(0, 1) @ j2.flatten(0, 1).T
    if output == "pseudo":
        return j1.sum(1) @ j2.sum(1).T / j1.shape[1]
    return torch.einsum("nip,mip->nm", j1, j2) / (j1.shape[1] if output == "mean" else 1)


@pytest.mark.parametrize("output", ["full", "trace", "mean", "pseudo"])
@pytest.mark.parametrize("name", ["graph", "batch norm"])
def test_operators(name: str, output: Any) -> None:
    _, x1, x2, training = CASES[name]
    j1, j2, net = jacobian(name, x1), jacobian(name, x2), made(name)
    before = snapshot(net)
    for matrix, second in (
        (expected(j1, j1, output), None),
        (expected(j1, j2, output), x2),
    ):
        theta = NTKOperator(net, x1, second, output=output, coupled=True, training=training)
        assert theta.shape == matrix.shape
        v, w = normal(matrix.shape[1], 2), normal(matrix.shape[0], 2)
        assert error(theta @ v, matrix @ v) < 1e-10
        assert error(theta.T @ w, matrix.T @ w) < 1e-10
        assert error(theta.to_dense(), matrix) < 1e-10
        assert error(theta.T.to_dense(), matrix.T) < 1e-10
    assert snapshot(net) == before


class Wide(nn.Module):
    """A set whose elements have five outputs each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([x, x.mean(0).expand_as(x)], dim=1)))


@pytest.mark.parametrize("coupled", [True, False])
def test_probed_operators_are_the_probed_kernel(coupled: bool) -> None:
    torch.manual_seed(1)
    net = Wide().double() if coupled else nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
    x1, x2 = normal(4, 3), normal(3, 3, seed=1)
    for probes in (3, 5):  # the last takes all outputs
        kwargs: dict[str, Any] = {"probes": probes, "seed": 2, "coupled": coupled}
        kernel = empirical_ntk(net, x1, x2, output="probed", **kwargs).kernel
        theta = NTKOperator(net, x1, x2, output="probed", **kwargs)
        v = normal(3, 2)
        assert error(theta @ v, kernel @ v) < 1e-10
        assert error(theta.to_dense(), kernel) < 1e-10
    with pytest.raises(ValueError, match="`probes` must be at least 2"):
        NTKOperator(net, x1, output="probed", probes=1)


@pytest.mark.parametrize("name", CASES)
def test_covariances_of_outputs(name: str) -> None:
    _, x1, x2, training = CASES[name]
    net = made(name)
    before = snapshot(net)
    found = empirical_nngp(net, x1, x2, coupled=True, training=training)
    f1 = call(made(name), x1).detach()
    f2 = f1 if x2 is None else call(made(name), x2).detach()
    assert error(found, f1 @ f2.T / 2) < 1e-12
    assert snapshot(net) == before


@pytest.mark.parametrize("name", ["graph", "no statistics"])
def test_verify_and_explain(name: str) -> None:
    _, x, _, training = CASES[name]
    for output in ("full", "mean", "pseudo"):
        found = verify(made(name), x, output=output, coupled=True, training=training)
        assert found.is_right
        assert all(not c.refusal and c.error < 1e-4 for c in found.checks)
        assert (found.samples, found.outputs) == ({"graph": 5, "no statistics": 4}[name], 2)
    plan = explain(made(name), x, coupled=True, training=training)
    assert (plan.samples, plan.outputs, plan.output) == (found.samples, 2, "full")
    assert [line.parameter for line in plan.lines] == [n for n, _ in made(name).named_parameters()]


def test_functions() -> None:
    """The set again, as a function of its parameters."""
    net, x1, x2 = made("set"), CASES["set"][1], CASES["set"][2]
    params = {n: p.detach() for n, p in net.named_parameters()}

    def f(p: dict[str, Tensor], batch: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(made("set"), p, (batch,))
        return found

    kwargs: dict[str, Any] = {"params": params, "coupled": True}
    j1, j2 = jacobian("set", x1), jacobian("set", x2)
    v = normal(4, 2)
    theta = NTKOperator(f, x1, x2, **kwargs)
    assert error(theta @ v, expected(j1, j2, "full") @ v) < 1e-10
    f1, f2 = call(net, x1).detach(), call(net, x2).detach()
    assert error(empirical_nngp(f, x1, x2, **kwargs), f1 @ f2.T / 2) < 1e-12
    assert all(not c.refusal and c.error < 1e-4 for c in verify(f, x1, **kwargs).checks)


def test_verify_finds_what_couples_without_being_told() -> None:
    """The loop over a whole batch is not that over its samples."""
    net, x = made("set"), CASES["set"][1]
    alone = verify(net, x)
    assert all(c.refusal for c in alone.checks)


def test_flags_without_coupling() -> None:
    """A module that scales its outputs in training."""

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (2.0 if self.training else 1.0) * super().forward(x)

    net, x = Scaled(3, 2).double(), normal(4, 3)
    once, twice = (NTKOperator(net, x, training=t).to_dense() for t in (False, True))
    assert error(twice, 4 * once) < 1e-12
    assert verify(net, x, training=True).is_right
    doubled = empirical_nngp(net, x, training=True)
    assert error(doubled, 4 * empirical_nngp(net, x)) < 1e-12


@pytest.mark.parametrize("function", [NTKOperator, empirical_nngp, verify, explain])
def test_bad_arguments(function: Any) -> None:
    net, x = made("set"), CASES["set"][1]
    with pytest.raises(TypeError, match="`coupled` must be True or False"):
        function(net, x, coupled="yes")
    with pytest.raises(TypeError, match="`training` must be True or False"):
        function(net, x, training=1)
    if function in (NTKOperator, empirical_nngp):
        with pytest.raises(ValueError, match="`batch_size` must be None with coupled=True"):
            function(net, x, coupled=True, batch_size=2)


def test_another_number_of_outputs_on_the_second_side() -> None:
    net = nn.Linear(3, 2).double()
    forward_fn = lambda net, x: net(x) if len(x) == 4 else net(x)[:, :1]  # noqa: E731
    with pytest.raises(ValueError, match=r"`x2` must be.*2 outputs a row"):
        NTKOperator(net, normal(4, 3), normal(2, 3), coupled=True, forward_fn=forward_fn)


def test_a_kernel_that_is_too_large_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made("set"), CASES["set"][1]
    theta = NTKOperator(net, x, coupled=True, output="mean")
    product = theta @ torch.ones(4).double()
    monkeypatch.setattr(_result_size, "free_memory", lambda device: 100)
    for compute in (theta.to_dense, lambda: empirical_ntk(net, x, coupled=True, output="mean")):
        with pytest.raises(ValueError, match=r"`coupled`.*8 rows times outputs.*\[8, 8\].*NTKOper"):
            compute()
    assert torch.equal(theta @ torch.ones(4).double(), product)
