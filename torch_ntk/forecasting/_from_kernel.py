"""A forecast from a kernel and outputs that are there already."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import (
    check_finite,
    check_finite_number,
    check_tensor,
    describe,
    type_error,
    value_error,
)
from ..linalg import as_float64
from ..predict import MSEPredictor, gradient_descent_mse, gradient_flow
from ._curvature import curvatures
from ._forecast import Forecast
from ._loss import LossLike, SmoothLoss, SquaredError, check_targets, read_loss

_MOST_STEPS = 1000
_HUGE = 1e100  # beyond it, squares of residuals leave the range of float64


def forecast_from_kernel(
    kernel: Tensor,
    outputs: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "mse",
    lr: float,
    steps: int | Sequence[int] | Tensor,
    momentum: float = 0.0,
    reduction: str = "mean",
    k_test_train: Tensor | None = None,
    test_outputs: Tensor | None = None,
    progress: bool = False,
) -> Forecast:
    """Predict a training from a kernel, the outputs at its start and the targets.

    As `forecast`, of which this is the second half.

    Args:
        kernel: Θ_0 on the training samples, `[N, N]` or `[N, N, O, O]`.
        outputs: f_0 on the training samples, `[N, O]`.
        y: Targets.
        loss: As in `forecast`.
        lr: As in `forecast`.
        steps: As in `forecast`.
        momentum: As in `forecast`.
        reduction: As in `forecast`.
        k_test_train: Θ_0 between test and training samples, `[M, N]` or `[M, N, O, O]`.
        test_outputs: f_0 on the test samples, `[M, O]`; needed with `k_test_train`.
        progress: As in `forecast`.

    Returns:
        The forecast.

    Raises:
        TypeError, ValueError: As `forecast`.

    Example:
        >>> import torch
        >>> from torch_ntk.forecasting import forecast_from_kernel
        >>> theta = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> start, y = torch.zeros(2, 1).double(), torch.ones(2, 1).double()
        >>> f = forecast_from_kernel(theta, start, y, lr=0.5, steps=2, reduction="sum")
        >>> f.loss, f.mode_steps, f.max_lr
        (tensor([1.0000, 0.1250, 0.0312], dtype=torch.float64), tensor([1., 2.],
        dtype=torch.float64), 1.0)
    """
    rate, mu = check_rates(lr, momentum)
    at = read_steps(steps)
    rule = read_loss(loss, reduction)
    theta = as_float64("kernel", kernel)
    start = check_tensor("outputs", outputs)
    if start.ndim != 2 or start.shape[0] != theta.shape[0]:
        raise value_error("outputs", f"[{theta.shape[0]}, O], as the kernel", start)
    start = check_finite("outputs", start.detach().to(theta.device, torch.float64))
    targets = rule.targets(check_targets(y).to(theta.device), start.shape)
    test = _test(k_test_train, test_outputs, theta)
    if isinstance(rule, SquaredError):
        found = _descent(rule, theta, start, targets, at, rate, mu, test)
    else:
        found = _flow(rule, theta, start, targets, at, rate, mu, test, progress)
    train, on_test, curved = found
    largest = max(float(curved[0]), 0.0)
    limit = 2.0 * (1.0 + mu) / largest if largest > 0.0 else math.inf
    losses = rule.values(train, targets)
    return Forecast(
        steps=at,
        loss=torch.where(losses.isfinite(), losses, math.inf).cpu(),
        train_outputs=train,
        test_outputs=on_test,
        curvatures=curved,
        mode_steps=(1.0 - mu) / (rate * curved.clamp_min(0.0)),
        lr=rate,
        momentum=mu,
        max_lr=limit,
        stable=rate < limit,
        exact_steps=isinstance(rule, SquaredError),
        kernel=kernel,
    )


_Test = tuple[Tensor, Tensor] | None
_Found = tuple[Tensor, Tensor | None, Tensor]


def _descent(
    rule: SquaredError,
    theta: Tensor,
    start: Tensor,
    y: Tensor,
    at: Tensor,
    lr: float,
    momentum: float,
    test: _Test,
) -> _Found:
    """Discrete steps in closed form."""
    predict = descent(rule, theta, y, lr, momentum)
    train, on_test = descended(predict, at, start, test)
    return train, on_test, rule.scale * predict.reduction_rate * predict.eigenvalues.flip(0)


def descent(
    rule: SquaredError, theta: Tensor, y: Tensor, lr: float, momentum: float
) -> MSEPredictor:
    """The predictor of steps on a squared error."""
    return gradient_descent_mse(
        theta,
        y,
        lr * rule.scale,  # the factor of the loss acts as one of the step
        momentum,
        reduction=rule.reduction,  # type: ignore[arg-type]
    )


def descended(
    predict: MSEPredictor, at: Tensor, start: Tensor, test: _Test = None
) -> tuple[Tensor, Tensor | None]:
    """Outputs after these steps; infinite where they diverge beyond float64."""
    decay = predict.residual_decay(at)
    fits = (decay.abs() < _HUGE).all(1).cpu()  # false for NaN as well
    kernel, f0 = (None, None) if test is None else test
    # The start goes in front, as there must be a time.
    times = torch.cat([at.new_zeros(1), at[fits]])
    f, g = predict(times, f0_train=start, f0_test=f0, k_test_train=kernel)
    return _spread(f[1:], fits), None if g is None else _spread(g[1:], fits)


def _spread(found: Tensor, fits: Tensor) -> Tensor:
    """Found outputs at the times that fit, infinite ones elsewhere."""
    full = torch.full((len(fits), *found.shape[1:]), math.inf, dtype=found.dtype)
    full = full.to(found.device)
    full[fits.to(found.device)] = found
    return full


def _flow(
    rule: SmoothLoss,
    theta: Tensor,
    start: Tensor,
    y: Tensor,
    at: Tensor,
    lr: float,
    momentum: float,
    test: _Test,
    progress: bool,
) -> _Found:
    """Gradient flow at the time that the steps amount to."""
    predict = gradient_flow(rule.function, theta, y, num_outputs=start.shape[1], progress=progress)
    times = flow_time(at.to(torch.float64), lr, momentum)
    kernel, f0 = (None, None) if test is None else test
    f, g = predict(times, f0_train=start, f0_test=f0, k_test_train=kernel)
    return f, g, curvatures(rule.function, theta, start, y)


def flow_time(steps: Tensor, lr: float, momentum: float) -> Tensor:
    r"""The time of gradient flow that steps with momentum μ amount to.

    Under a constant gradient k steps of heavy ball from rest go as far as
    lr·Σ_{j≤k} (1 - μ^j)/(1 - μ) = lr·(k - μ (1 - μ^k)/(1 - μ))/(1 - μ): the time that leaves an
    error of second order in lr.
    """
    rest = 1.0 - momentum
    return lr / rest * (steps - momentum * (1.0 - momentum**steps) / rest)


def _test(kernel: Tensor | None, outputs: Tensor | None, theta: Tensor) -> _Test:
    if kernel is None and outputs is None:
        return None
    if kernel is None or outputs is None:
        missing = "k_test_train" if kernel is None else "test_outputs"
        raise value_error(missing, "given together with the other of the two", describe(None))
    return (
        as_float64("k_test_train", kernel).to(theta.device),
        as_float64("test_outputs", outputs).to(theta.device),
    )


def check_rates(lr: object, momentum: object) -> tuple[float, float]:
    """Learning rate and momentum.

    Raises:
        TypeError: One is not a number.
        ValueError: `lr` is not positive, or `momentum` not in [0, 1).
    """
    rate = check_finite_number("lr", lr)
    if rate <= 0.0:
        raise value_error(
            "lr", "positive", f"{rate:g}", "Pass that of the optimizer, such as lr=0.1."
        )
    mu = check_finite_number("momentum", momentum, minimum=0.0)
    if mu >= 1.0:
        raise value_error("momentum", "in [0, 1)", f"{mu:g}", "With 1, nothing ever comes to rest.")
    return rate, mu


def read_steps(steps: object) -> Tensor:
    """The steps of a trajectory, `[T]`, ascending.

    Args:
        steps: The last step, for every step up to it (evenly spaced ones if there are more than a
            thousand), or the steps themselves.

    Raises:
        TypeError: Neither an integer nor integers.
        ValueError: None, or a negative one.
    """
    expected = "a number of steps, or a sequence of step numbers"
    if isinstance(steps, int) and not isinstance(steps, bool):
        if steps < 1:
            raise value_error("steps", "at least 1", steps)
        points = min(steps, _MOST_STEPS)
        return torch.tensor([round(k * steps / points) for k in range(points + 1)])
    if isinstance(steps, Tensor):
        steps = steps.tolist()
    if not isinstance(steps, Sequence) or isinstance(steps, (str, bytes)):
        raise type_error("steps", expected, describe(steps))
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in steps):
        raise type_error("steps", expected, "a sequence of other things than integers")
    if not steps or min(steps) < 0:
        raise value_error("steps", "not empty and not negative", f"{list(steps)[:5]}")
    return torch.tensor(sorted(set(steps)))
