"""`gp_inference` of operators equals that of the matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_ntk import MLP, NTKOperator, empirical_ntk
from torch_ntk.empirical.operator._kernel_map import KernelMap
from torch_ntk.predict import _operator_process, gp_inference


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, X_TEST, Y = normal(12, 5, seed=0), normal(3, 5, seed=1), normal(12, 2, seed=2)


def network() -> MLP:
    torch.manual_seed(3)
    return MLP([5, 60, 2]).double()


def off(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize(("output", "y"), [("full", Y), ("mean", Y), ("mean", Y[:, 0])])
def test_the_same_as_of_matrices(
    output: Any, y: Tensor, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    train, cross, test = (
        empirical_ntk(net, a, b, output=output) for a, b in ((X, None), (X_TEST, X), (X_TEST, None))
    )
    mean, covariance = gp_inference(train, y, diag_reg=0.1)(cross, test)
    if products:
        monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)
    operators = (
        NTKOperator(net, a, b, output=output) for a, b in ((X, None), (X_TEST, X), (X_TEST, None))
    )
    train_op, cross_op, test_op = operators
    posterior = gp_inference(train_op, y, diag_reg=0.1)
    assert posterior.residual <= 1e-8
    for a, b in ((cross_op, test_op), (cross_op, test), (cross, test_op), (cross, test)):
        found = posterior(a, b)
        assert off(found.mean, mean) < 1e-6
        assert found.covariance is not None
        assert covariance is not None
        assert off(found.covariance, covariance) < 1e-6
    alone = posterior(cross_op)
    assert alone.covariance is None
    assert torch.equal(alone.mean, found.mean) or off(alone.mean, found.mean) < 1e-12
    assert torch.equal(posterior.targets, y)
    assert "OperatorProcess(12 samples" in repr(posterior)


def test_the_mean_forms_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)
    monkeypatch.setattr(KernelMap, "dense", None)
    net = network()
    posterior = gp_inference(NTKOperator(net, X, output="mean"), Y, diag_reg=0.1)
    assert posterior(NTKOperator(net, X_TEST, X, output="mean")).mean.shape == (3, 2)


def test_float32() -> None:
    net = network().float()
    theta = NTKOperator(net, X.float(), output="mean")
    posterior = gp_inference(theta, Y.float(), diag_reg=0.1)
    found = posterior(NTKOperator(net, X_TEST.float(), X.float(), output="mean"))
    exact = gp_inference(empirical_ntk(net, X.float(), output="mean"), Y.float(), diag_reg=0.1)
    expected = exact(empirical_ntk(net, X_TEST.float(), X.float(), output="mean"))
    assert off(found.mean, expected.mean) < 1e-2


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    train, cross = NTKOperator(net, X, output="mean"), NTKOperator(net, X_TEST, X, output="mean")
    test = NTKOperator(net, X_TEST, output="mean")
    bad: Any = cross
    posterior = gp_inference(train, Y, diag_reg=0.1)
    for call, error, says in (
        (lambda: gp_inference(cross, Y), ValueError, "`k_train_train` must be the operator of one"),
        (lambda: gp_inference(train, Y[:5]), ValueError, r"`y` must be of shape \[12\]"),
        (lambda: gp_inference(train, Y.long()), TypeError, "`y`.*one_hot"),
        (lambda: gp_inference(train, Y, diag_reg=-1.0), ValueError, "`diag_reg`"),
        (
            lambda: gp_inference(NTKOperator(net, X), Y[:, 0]),
            ValueError,
            r"`y` must be of shape \[12, 2\]",
        ),
        (lambda: posterior(cross.T), ValueError, "`k_test_train` must be an operator of 12 col"),
        (
            lambda: posterior(NTKOperator(net, X_TEST, X, output="trace")),
            ValueError,
            "`k_test_train`.*output='mean'.*Make NTKOperator",
        ),
        (lambda: posterior(bad, bad), ValueError, "`k_test_test` must be an operator of 3 columns"),
        (lambda: posterior(torch.ones(3, 5)), ValueError, "`k_test_train` must be of shape"),
    ):
        with pytest.raises(error, match=says):
            call()
    monkeypatch.setattr(_operator_process, "budget", lambda device: 100)
    with pytest.raises(ValueError, match=r"`k_test_test`.*fewer test samples.*mean alone"):
        posterior(cross, test)
    assert posterior(cross).mean.shape == (3, 2)


def test_a_singular_kernel_is_told() -> None:
    twice = torch.cat([X, X[:1]])
    theta = NTKOperator(network(), twice, output="mean")
    with pytest.raises(RuntimeError, match=r"residual.*`diag_reg`"):
        gp_inference(theta, torch.cat([Y, -Y[:1]]))
