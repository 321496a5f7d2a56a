"""`forecast_from_kernel`: predict a training from a given kernel and given outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_finite, check_tensor, describe, type_error, value_error
from ..linalg import as_float64
from ..predict import MSEPredictor, gradient_descent_mse, gradient_flow
from ..predict._gradient_descent_mse import check_learning_rate
from ..predict._max_learning_rate import check_momentum
from ._curvature import curvatures
from ._forecast import Forecast
from ._loss import LossLike, SquaredError, read_loss

_MOST_STEPS = 1000  # as many evenly spaced steps are predicted if there are more
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

    `forecast` computes kernel and outputs, and then calls this function.

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
    rate, mu = check_learning_rate(lr), check_momentum(momentum)
    at = read_steps(steps)
    rule = read_loss(loss, reduction)
    theta = as_float64("kernel", kernel)
    start = check_tensor("outputs", outputs)
    if start.ndim != 2 or start.shape[0] != theta.shape[0]:
        raise value_error("outputs", f"[{theta.shape[0]}, O], as the kernel", start)
    start = check_finite("outputs", start.detach().to(theta.device, torch.float64))
    targets = rule.targets(check_tensor("y", y).to(theta.device), start.shape)
    test = _test(k_test_train, test_outputs, theta)
    if isinstance(rule, SquaredError):
        predictor = descent(rule, theta, targets, rate, mu)
        train, on_test = descended(predictor, at, start, test)
        curved = rule.scale * predictor.reduction_rate * predictor.eigenvalues.flip(0)
    else:
        function, size = rule.function, start.shape[1]
        flow = gradient_flow(function, theta, targets, num_outputs=size, progress=progress)
        times = flow_time(at.to(torch.float64), rate, mu)
        train, on_test = flow(times, start, test.outputs, test.kernel)
        curved = curvatures(function, theta, start, targets)
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


class _Test(NamedTuple):
    """Θ_0 between test and training samples, and f_0 on test samples; None without test samples."""

    kernel: Tensor | None = None
    outputs: Tensor | None = None


_NO_TEST = _Test()


def descent(
    rule: SquaredError, theta: Tensor, y: Tensor, lr: float, momentum: float
) -> MSEPredictor:
    """The predictor of gradient descent on a squared error."""
    return gradient_descent_mse(
        theta,
        y,
        lr * rule.scale,  # a factor of the loss has the effect of a factor of the step
        momentum,
        reduction=rule.reduction,  # type: ignore[arg-type]
    )


def descended(
    predict: MSEPredictor, at: Tensor, start: Tensor, test: _Test = _NO_TEST
) -> tuple[Tensor, Tensor | None]:
    """Outputs on training and test samples after these steps; infinite where they diverge."""
    decay = predict.residual_decay(at)
    fits = (decay.abs() < _HUGE).all(1).cpu()  # false for NaN as well
    # Step 0 is put in front, because a predictor needs at least one time.
    times = torch.cat([at.new_zeros(1), at[fits]])
    f, g = predict(times, start, test.outputs, test.kernel)
    return _spread(f[1:], fits), None if g is None else _spread(g[1:], fits)


def _spread(found: Tensor, fits: Tensor) -> Tensor:
    """The outputs of the steps for which `fits` is True, and infinity at the other steps."""
    full = torch.full((len(fits), *found.shape[1:]), math.inf, dtype=found.dtype)
    full = full.to(found.device)
    full[fits.to(found.device)] = found
    return full


def flow_time(steps: Tensor, lr: float, momentum: float) -> Tensor:
    r"""The time of gradient flow to which steps with momentum μ amount.

    With a constant gradient, k steps of heavy-ball momentum from rest cover the same distance as
    gradient flow does in the time

        lr·Σ_{j≤k} (1 - μ^j)/(1 - μ) = lr·(k - μ (1 - μ^k)/(1 - μ))/(1 - μ).

    The error of this time is of second order in lr.
    """
    rest = 1.0 - momentum
    return lr / rest * (steps - momentum * (1.0 - momentum**steps) / rest)


def _test(kernel: Tensor | None, outputs: Tensor | None, theta: Tensor) -> _Test:
    if kernel is None and outputs is None:
        return _Test()
    if kernel is None or outputs is None:
        missing = "k_test_train" if kernel is None else "test_outputs"
        raise value_error(missing, "given if the other of the two is given", describe(None))
    return _Test(
        as_float64("k_test_train", kernel).to(theta.device),
        as_float64("test_outputs", outputs).to(theta.device),
    )


def read_steps(steps: object) -> Tensor:
    """The numbers of the steps to predict, `[T]`, ascending.

    They are given as a sequence, or as the number of the last one, for all steps up to it (or 1,001
    evenly spaced ones if there are more than a thousand).
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
        raise type_error("steps", expected, "a sequence with entries that are not integers")
    if not steps or min(steps) < 0:
        raise value_error("steps", "not empty and not negative", f"{list(steps)[:5]}")
    return torch.tensor(sorted(set(steps)))
