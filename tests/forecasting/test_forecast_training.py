"""A forecast against a linearized network that is really trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk import empirical_ntk, linearize
from torch_ntk.forecasting import forecast
from torch_ntk.predict import max_learning_rate


def problem(classes: int = 2) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A network, training inputs, targets and test inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    x, y = torch.randn(5, 3).double(), torch.randn(5, classes).double()
    return net, x, y, torch.randn(4, 3).double()


def trained(
    net: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor, Tensor],
    steps: int,
    **sgd: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and outputs on both sets before each step and after the last."""
    model, (x, y, x_test) = linearize(net), data
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    losses, train, test = [], [], []
    for _ in range(steps + 1):
        f = model(x)
        value = loss(f, y)
        losses.append(value.detach())
        train.append(f.detach())
        test.append(model(x_test).detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return torch.stack(losses), torch.stack(train), torch.stack(test)


def half_mean(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (f - y).square().mean()


def half_sum(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (f - y).square().sum()


def torch_sum(f: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(f, y, reduction="sum")


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize(
    ("loss", "reduction", "function"),
    [
        ("mse", "mean", half_mean),
        ("mse", "sum", half_sum),
        (F.mse_loss, "mean", F.mse_loss),
        (F.mse_loss, "sum", torch_sum),
        (nn.MSELoss(reduction="sum"), "mean", torch_sum),
    ],
    ids=["half-mean", "half-sum", "torch-mean", "torch-sum", "module-sum"],
)
def test_squared_error_is_exact_for_discrete_steps(
    loss: Any, reduction: str, function: Callable[[Tensor, Tensor], Tensor], momentum: float
) -> None:
    net, x, y, x_test = problem()
    lr = 0.004 if function in (half_sum, torch_sum) else 0.05
    losses, train, test = trained(net, function, (x, y, x_test), 40, lr=lr, momentum=momentum)
    found = forecast(
        net,
        x,
        y,
        loss=loss,
        lr=lr,
        steps=40,
        x_test=x_test,
        momentum=momentum,
        reduction=reduction,
    )
    assert found.exact_steps
    assert found.steps.tolist() == list(range(41))
    assert losses[-1] < 0.9 * losses[0]  # there was something to predict
    torch.testing.assert_close(found.loss, losses, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.train_outputs, train, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.test_outputs, test, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["module, probabilities", "sum, labels"])
def test_cross_entropy_is_what_small_steps_do(kind: str) -> None:
    """The distance to training is halved with the step: the flow is its limit."""
    net, x, _, x_test = problem(3)
    y = torch.tensor([0, 2, 1, 1, 0])
    by_name = kind.startswith("sum")
    loss: Any = "cross_entropy" if by_name else nn.CrossEntropyLoss()
    reduction = "sum" if by_name else "mean"
    if not by_name:
        y = torch.softmax(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), 1).double()

    def function(f: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(f, target, reduction=reduction)

    time = 0.4 if by_name else 2.0
    errors = []
    for steps in (100, 200):
        lr = time / steps
        losses, train, test = trained(net, function, (x, y, x_test), steps, lr=lr)
        found = forecast(
            net, x, y, loss=loss, lr=lr, steps=steps, x_test=x_test, reduction=reduction
        )
        assert not found.exact_steps
        assert found.test_outputs is not None
        assert losses[-1] < 0.9 * losses[0]
        torch.testing.assert_close(found.loss, losses, rtol=5e-3, atol=0.0)
        torch.testing.assert_close(found.test_outputs, test, rtol=0.0, atol=2e-2)
        errors.append(float((found.train_outputs - train)[-1].norm()))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)


def test_momentum_gathers_speed_under_a_smooth_loss() -> None:
    """Also at the first steps the distance to training falls with the step."""
    net, x, _, _ = problem(3)
    y = torch.tensor([0, 2, 1, 1, 0])
    errors = []
    for lr, steps in ((0.004, 100), (0.002, 200)):
        found = forecast(net, x, y, loss="cross_entropy", lr=lr, steps=steps, momentum=0.8)
        losses, _, _ = trained(net, F.cross_entropy, (x, y, x), steps, lr=lr, momentum=0.8)
        torch.testing.assert_close(found.loss[1], losses[1], rtol=1e-4, atol=0.0)
        torch.testing.assert_close(found.loss, losses, rtol=1e-2, atol=0.0)
        errors.append(float((found.loss - losses).abs().max()))
    assert losses[-1] < 0.6 * losses[0]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.3)


def test_modes_decay_in_their_time() -> None:
    """A residual along eigenvector i falls to 1/e in 1/(η λ_i) small steps."""
    net, x, y, _ = problem()
    theta = empirical_ntk(net, x, dtype=torch.float64)
    values = torch.linalg.eigvalsh(theta.permute(0, 2, 1, 3).reshape(10, 10)).flip(0)
    lr = 1e-4
    found = forecast(net, x, y, lr=lr, steps=1, reduction="sum")
    torch.testing.assert_close(found.curvatures, values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.mode_steps, 1 / (lr * values), rtol=1e-7, atol=0.0)
    heavy = forecast(net, x, y, lr=lr, steps=1, momentum=0.5)
    torch.testing.assert_close(heavy.mode_steps, 0.5 * 10 / (lr * values), rtol=1e-7, atol=0.0)
    assert bool((found.mode_steps.diff() >= 0).all())


def test_smooth_curvatures_are_those_of_squared_error_where_the_loss_is_one() -> None:
    net, x, y, _ = problem()
    exact = forecast(net, x, y, lr=0.01, steps=3)
    smooth = forecast(net, x, y, loss=half_mean, lr=0.01, steps=3)
    torch.testing.assert_close(smooth.curvatures, exact.curvatures, rtol=1e-9, atol=1e-12)
    assert smooth.max_lr == pytest.approx(exact.max_lr, rel=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("output", ["full", "mean"])
def test_stable_means_below_the_largest_rate(output: Any, momentum: float) -> None:
    net, x, y, x_test = problem()
    theta = empirical_ntk(net, x, output=output, dtype=torch.float64)
    limit = max_learning_rate(theta, reduction="mean", momentum=momentum, num_outputs=2)
    for factor, stable in ((0.95, True), (1.05, False)):
        lr = factor * limit
        found = forecast(net, x, y, lr=lr, steps=400, momentum=momentum, output=output)
        assert found.stable is stable
        assert found.max_lr == pytest.approx(limit, rel=1e-9)
        assert bool(found.loss[-1] > found.loss[0]) is not stable
        assert ("DIVERGES" in str(found)) is not stable
    if output == "full":
        losses, _, _ = trained(net, half_mean, (x, y, x_test), 60, lr=lr, momentum=momentum)
        torch.testing.assert_close(found.loss[:61], losses, rtol=1e-7, atol=0.0)


def test_divergence_beyond_numbers_is_infinite() -> None:
    net, x, y, x_test = problem()
    found = forecast(net, x, y, lr=1e3, steps=[0, 5, 2000], x_test=x_test)
    assert found.loss[:2].isfinite().all()
    assert torch.isinf(found.loss[2])
    assert found.test_outputs is not None
    assert torch.isinf(found.test_outputs[2]).all()
    alone = forecast(net, x, y, lr=1e3, steps=[2000])
    assert torch.isinf(alone.loss).all()
