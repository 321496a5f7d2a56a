"""Predicted steps against real training by torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from predict_problems import coupled, draw, shared
from torch import Tensor, nn

from torch_ntk import empirical_ntk, linearize
from torch_ntk.predict import gradient_descent_mse, gradient_flow_mse, max_learning_rate


def half_squared_error(reduction: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(f: Tensor, y: Tensor) -> Tensor:
        halves = 0.5 * (f - y).square()
        return halves.sum() if reduction == "sum" else halves.mean()

    return loss


def train(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, reduction: str, lr: float, momentum: float
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    loss = half_squared_error(reduction)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_linearized_network_trained_by_sgd(momentum: float, reduction: str) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y, x_test = draw(6, 4, seed=1), draw(6, 3, seed=2), draw(5, 4, seed=3)
    k_tt, k_st = empirical_ntk(net, x), empirical_ntk(net, x_test, x)
    lr = 0.6 * max_learning_rate(k_tt, reduction=reduction, momentum=momentum)  # type: ignore[arg-type]
    with torch.no_grad():
        f0, f0_test = net(x), net(x_test)
    predictor = gradient_descent_mse(k_tt, y, lr, momentum, reduction=reduction)  # type: ignore[arg-type]
    f_train, f_test = predictor(torch.tensor([1, 2, 40]), f0, f0_test, k_st)
    assert f_test is not None
    for i, steps in enumerate((1, 2, 40)):
        linear = linearize(net)
        train(linear, x, y, steps, reduction, lr, momentum)
        with torch.no_grad():
            torch.testing.assert_close(f_train[i], linear(x), rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(f_test[i], linear(x_test), rtol=1e-8, atol=1e-10)


def test_linear_regression_is_the_special_case() -> None:
    x, y, x_test = draw(5, 8, seed=4), draw(5, seed=5), draw(3, 8, seed=6)
    model = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        f0, f0_test = model(x)[:, 0], model(x_test)[:, 0]
    predictor = gradient_descent_mse(x @ x.T, y, 0.02, 0.8)
    f_train, f_test = predictor(25, f0, f0_test, x_test @ x.T)
    train(model, x, y[:, None], 25, "sum", 0.02, 0.8)
    with torch.no_grad():
        torch.testing.assert_close(f_train, model(x)[:, 0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(f_test, model(x_test)[:, 0], rtol=1e-11, atol=1e-11)


def descend(
    k: Tensor, y: Tensor, lr: float, momentum: float, steps: int, reduction: str
) -> tuple[float, float]:
    """Distance from y after many steps, iterated and predicted."""
    full = k.ndim == 4
    f, v = torch.zeros_like(y), torch.zeros_like(y)
    rate = 1.0 if reduction == "sum" else 1.0 / y.numel()
    for _ in range(steps):
        residual = rate * (f - y)
        step = torch.einsum("nmij,mj->ni", k, residual) if full else k @ residual
        v = momentum * v + step
        f = f - lr * v
    predictor = gradient_descent_mse(k, y, lr, momentum, reduction=reduction)  # type: ignore[arg-type]
    predicted, _ = predictor(steps)
    scale = float(y.norm())
    return float((f - y).norm()) / scale, float((predicted - y).norm()) / scale


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_just_below_the_largest_step_converges_and_above_diverges(
    momentum: float, reduction: str, full: bool
) -> None:
    p = coupled() if full else shared(features=200)
    outputs = {} if full else {"num_outputs": 2}
    largest = max_learning_rate(
        p.train_train,
        reduction=reduction,  # type: ignore[arg-type]
        momentum=momentum,
        **outputs,
    )
    iterated, predicted = descend(p.train_train, p.y, 0.99 * largest, momentum, 3000, reduction)
    assert iterated < 1e-3
    assert predicted < 1e-3
    for steps in (50, 200):
        iterated, predicted = descend(
            p.train_train, p.y, 1.05 * largest, momentum, steps, reduction
        )
        assert predicted == pytest.approx(iterated, rel=1e-6)
    assert iterated > 1e6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_predictor_knows_its_largest_step(momentum: float) -> None:
    p = coupled()
    predictor = gradient_descent_mse(p.train_train, p.y, 0.1, momentum, reduction="mean")
    assert predictor.max_learning_rate == pytest.approx(
        max_learning_rate(p.train_train, reduction="mean", momentum=momentum), rel=1e-14
    )


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_small_steps_are_gradient_flow(momentum: float) -> None:
    """k steps of size η amount to the time ηk/(1 - μ)."""
    p = shared()
    steps, time = 10**7, 3.0
    lr = time * (1.0 - momentum) / steps
    discrete = gradient_descent_mse(p.train_train, p.y, lr, momentum)
    flow = gradient_flow_mse(p.train_train, p.y)
    for a, b in zip(
        discrete(steps, p.f0_train, p.f0_test, p.test_train),
        flow(time, p.f0_train, p.f0_test, p.test_train),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_limit_is_that_of_gradient_flow() -> None:
    p = shared()
    lr = 0.5 * max_learning_rate(p.train_train)
    for a, b in zip(
        gradient_descent_mse(p.train_train, p.y, lr, 0.9)(
            None, p.f0_train, p.f0_test, p.test_train
        ),
        gradient_flow_mse(p.train_train, p.y)(None, p.f0_train, p.f0_test, p.test_train),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
