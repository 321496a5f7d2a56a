"""Kernels with an output index, against matrix exponentials and against the simple kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from predict_problems import Problem, coupled, kron_identity, matrix, shared
from scipy.linalg import expm
from torch import Tensor

from torch_ntk.predict import (
    KernelPair,
    MSEPredictor,
    ensemble_mse,
    gp_inference,
    gradient_descent_mse,
    gradient_flow,
    gradient_flow_mse,
    max_learning_rate,
)

TIMES = torch.tensor([0.0, 0.5, 3.0, 50.0], dtype=torch.float64)


def flow_by_expm(p: Problem, t: float, rate: float, reg: float = 0.0) -> tuple[Tensor, Tensor]:
    """The exponential of the whole linear system of train and test outputs.

    d/dt (f - y, f_test) = -[[K, 0], [K_st, 0]] (f - y, f_test).
    """
    k_tt, k_st = matrix(p.train_train), matrix(p.test_train)
    k_tt = k_tt + reg * k_tt.diagonal().mean() * torch.eye(len(k_tt), dtype=torch.float64)
    n, m = k_tt.shape[0], k_st.shape[0]
    system = torch.zeros(n + m, n + m, dtype=torch.float64)
    system[:n, :n], system[n:, :n] = -rate * k_tt, -rate * k_st
    start = torch.cat([(p.f0_train - p.y).reshape(-1), p.f0_test.reshape(-1)])
    end = torch.from_numpy(expm(t * system.numpy())) @ start
    return end[:n].reshape(p.y.shape) + p.y, end[n:].reshape(p.f0_test.shape)


@pytest.mark.parametrize("reg", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_flow_of_coupled_outputs(reduction: str, reg: float) -> None:
    p = coupled()
    rate = 1.0 if reduction == "sum" else 1.0 / 12.0
    predictor = gradient_flow_mse(p.train_train, p.y, reduction=reduction, diag_reg=reg)  # type: ignore[arg-type]
    f_train, f_test = predictor(TIMES, p.f0_train, p.f0_test, p.test_train)
    assert f_test is not None
    assert f_train.shape == (4, 4, 3)
    assert f_test.shape == (4, 3, 3)
    for i, t in enumerate(TIMES.tolist()):
        train, test = flow_by_expm(p, t, rate, reg)
        torch.testing.assert_close(f_train[i], train, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(f_test[i], test, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_steps_of_coupled_outputs(momentum: float, reduction: str) -> None:
    p = coupled()
    rate = 1.0 if reduction == "sum" else 1.0 / 12.0
    lr = 0.7 * max_learning_rate(p.train_train, reduction=reduction, momentum=momentum)  # type: ignore[arg-type]
    f, g, v = p.f0_train, p.f0_test, torch.zeros_like(p.y)  # v: the velocity of K⁻¹ f
    predictor = gradient_descent_mse(p.train_train, p.y, lr, momentum, reduction=reduction)  # type: ignore[arg-type]
    for step in range(30):
        v = momentum * v + rate * (f - p.y)
        f = f - lr * torch.einsum("nmij,mj->ni", p.train_train, v)
        g = g - lr * torch.einsum("nmij,mj->ni", p.test_train, v)
        f_train, f_test = predictor(step + 1, p.f0_train, p.f0_test, p.test_train)
        torch.testing.assert_close(f_train, f, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(f_test, g, rtol=1e-11, atol=1e-11)


MAKERS: dict[str, Callable[[Tensor, Tensor], MSEPredictor]] = {
    "flow": lambda k, y: gradient_flow_mse(k, y, reduction="mean", diag_reg=0.01),
    "descent": lambda k, y: gradient_descent_mse(k, y, 0.1, 0.9, reduction="mean"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_outputs_that_do_not_interact(name: str) -> None:
    """k ⊗ 1 gives what k gives."""
    p = shared()
    steps = torch.tensor([0.0, 1.0, 7.0, 1000.0, float("inf")])
    simple = MAKERS[name](p.train_train, p.y)
    full = MAKERS[name](kron_identity(p.train_train, 2), p.y)
    expected = simple(steps, p.f0_train, p.f0_test, p.test_train)
    found = full(steps, p.f0_train, p.f0_test, kron_identity(p.test_train, 2))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    doubled = simple.eigenvalues.repeat_interleave(2)
    torch.testing.assert_close(full.eigenvalues, doubled, rtol=1e-12, atol=1e-12)


def test_the_ode_with_outputs_that_do_not_interact() -> None:
    p = shared()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    loss = torch.nn.functional.cross_entropy
    simple = gradient_flow(loss, p.train_train, labels, num_outputs=2)
    full = gradient_flow(loss, kron_identity(p.train_train, 2), labels)
    expected = simple(4.0, p.f0_train, p.f0_test, p.test_train)
    found = full(4.0, p.f0_train, p.f0_test, kron_identity(p.test_train, 2))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_ode_of_coupled_outputs(reduction: str) -> None:
    """Squared error by the solver is squared error in closed form."""
    p = coupled()

    def loss(f: Tensor, y: Tensor) -> Tensor:
        halves = 0.5 * (f - y).square()
        return halves.sum() if reduction == "sum" else halves.mean()

    predictor = gradient_flow(loss, p.train_train, p.y, method="Radau", rtol=1e-10, atol=1e-10)
    f_train, f_test = predictor(2.0, p.f0_train, p.f0_test, p.test_train)
    train, test = flow_by_expm(p, 2.0, 1.0 if reduction == "sum" else 1.0 / 12.0)
    torch.testing.assert_close(f_train, train, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(f_test, test, rtol=1e-8, atol=1e-8)


def test_single_outputs_come_with_or_without_their_axis() -> None:
    p = shared(o=1)
    flat = gradient_flow_mse(p.train_train, p.y[:, 0])
    column = gradient_flow_mse(p.train_train, p.y)
    full = gradient_flow_mse(p.train_train[:, :, None, None], p.y[:, 0])
    a = flat(TIMES, p.f0_train[:, 0], p.f0_test[:, 0], p.test_train)
    b = column(TIMES, p.f0_train, p.f0_test, p.test_train)
    c = full(TIMES, p.f0_train[:, 0], p.f0_test[:, 0], p.test_train[:, :, None, None])
    for x, y, z in zip(a, b, c, strict=True):
        assert x is not None
        assert y is not None
        assert y.shape == (*x.shape, 1)
        torch.testing.assert_close(x, y[..., 0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(x, z, rtol=1e-13, atol=1e-13)


def test_a_posterior_of_coupled_outputs() -> None:
    p = coupled()
    mean, covariance = gp_inference(p.train_train, p.y, diag_reg=0.05)(p.test_train, p.test_test)
    k, k_st, k_ss = matrix(p.train_train), matrix(p.test_train), matrix(p.test_test)
    noisy = k + 0.05 * k.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    expected = k_st @ torch.linalg.solve(noisy, p.y.reshape(-1))
    torch.testing.assert_close(mean, expected.reshape(3, 3), rtol=1e-11, atol=1e-11)
    assert covariance is not None
    assert covariance.shape == (3, 3, 3, 3)
    spread = k_ss - k_st @ torch.linalg.solve(noisy, k_st.T)
    torch.testing.assert_close(matrix(covariance), spread, rtol=1e-11, atol=1e-11)


def test_an_ensemble_of_coupled_outputs_with_times() -> None:
    """Full pairs made of `[N, N]` pairs give the same distribution."""
    p, q = shared(), shared(seed=30)
    pairs = [
        KernelPair(a, b) for a, b in ((p.train_train, q.train_train), (p.test_train, q.test_train))
    ]
    full = [KernelPair(kron_identity(k.nngp, 2), kron_identity(k.ntk, 2)) for k in pairs]
    for ensemble in ("ntk", "nngp"):
        simple = ensemble_mse(pairs[0], p.y, ensemble=ensemble)  # type: ignore[arg-type]
        other = ensemble_mse(full[0], p.y, ensemble=ensemble)  # type: ignore[arg-type]
        mean, covariance = simple(TIMES, pairs[1], p.test_test)
        found = other(TIMES, full[1], kron_identity(p.test_test, 2))
        assert covariance is not None
        torch.testing.assert_close(found.mean, mean, rtol=1e-11, atol=1e-11)
        expected = torch.stack([kron_identity(c, 2) for c in covariance])
        torch.testing.assert_close(found.covariance, expected, rtol=1e-11, atol=1e-11)
