"""`forecast`: predict the training of a network from its kernel and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_tensor, describe, type_error
from .._functional import Batch, ModelFunction, evaluating_on, model_function, unwrap
from .._types import BatchLike, ForwardFn, Method, Output, ParameterSelection, PreconditionLike
from ..empirical import empirical_ntk
from ..empirical._coupled import CoupledBatches
from ..empirical.inspect import keep_hooks_that_matter
from ..predict._gradient_descent_mse import check_learning_rate
from ..predict._max_learning_rate import check_momentum
from ._forecast import Forecast
from ._from_kernel import forecast_from_kernel, read_steps
from ._loss import LossLike, read_loss

_OUTPUTS = ("full", "mean", "pseudo")
_CHUNK = 64


def forecast(
    model: nn.Module,
    x: BatchLike,
    y: Tensor,
    *,
    loss: LossLike = "mse",
    lr: float,
    steps: int | Sequence[int] | Tensor,
    x_test: BatchLike | None = None,
    momentum: float = 0.0,
    reduction: str = "mean",
    output: Output = "full",
    method: Method = "auto",
    params: ParameterSelection = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = torch.float64,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
) -> Forecast:
    r"""Predict the loss curve of full-batch training from the kernel at its start.

    The kernel Θ_0 of the network at its present parameters determines the training of the
    linearized network. For squared error, k steps of `torch.optim.SGD(lr, momentum)` are predicted
    exactly as discrete steps. Without momentum they are

        f_k = y + (1 - lr·c·Θ_0)^k (f_0 - y).

    For any other loss gradient flow is predicted, ḟ = -Θ_0 ∂loss/∂f, which small steps follow. Step
    k corresponds to the time lr·k without momentum, and to
    lr·(k - μ (1 - μ^k)/(1 - μ))/(1 - μ) with momentum μ that starts at 0. The real network follows
    the prediction while its kernel stays close to Θ_0, which is longer the wider it is. The network
    is evaluated in eval mode, with its present running statistics.

    Args:
        model: The network, at the parameters from which training starts.
        x: All N training samples, in any form that `torch_ntk.empirical_ntk` takes. Training on
            full batches is predicted.
        y: Targets: `[N, O]` for squared error, class labels `[N]` or probabilities `[N, O]` for
            cross-entropy, or what `loss` takes.
        loss: `"mse"` is ½ (f - y)² averaged over all N·O entries (or summed, see `reduction`).
            `torch.nn.functional.mse_loss` and `nn.MSELoss` are recognized; they are twice that.
            Other losses are `"cross_entropy"`, and any twice differentiable function
            `loss(f, y) -> scalar` of all outputs `[N, O]`.
        lr: The learning rate.
        steps: The number of steps, all of which are predicted (or 1,001 evenly spaced ones if there
            are more than a thousand); or a sequence with the numbers of the steps to predict.
        x_test: M test samples of the same form, whose outputs are predicted as well.
        momentum: The heavy-ball momentum of SGD, without dampening and not Nesterov's.
        reduction: `"mean"` or `"sum"`, for losses that are given by name or as torch's function.
        output: `"full"` takes the kernel with all outputs, `[N, N, O, O]`. `"mean"` and `"pseudo"`
            take a kernel `[N, N]` that acts on every output alike; this holds for wide networks and
            costs far less.
        method: As in `torch_ntk.empirical_ntk`.
        params: The parameters that are trained; see `torch_ntk.empirical_ntk`.
        batch_size: As in `torch_ntk.empirical_ntk`.
        dtype: The dtype of the kernel; float64 by default, because small eigenvalues of a kernel in
            float32 are noise.
        progress: Whether to show progress bars.
        forward_fn: As in `torch_ntk.empirical_ntk`.
        coupled: Whether a batch is one input, and the rows of its outputs are the samples. For a
            graph some of whose nodes are trained on, use
            `forward_fn=lambda net, batch: net(*batch)[mask]`.
        training: Whether modules keep their training flags; see `torch_ntk.empirical_ntk`.
        precondition: As in `torch_ntk.empirical_ntk`: the kernel is `J P Jᵀ` with the present P of
            an optimizer. P is assumed constant, so that the forecast is valid for fewer steps than
            those over which the optimizer averages squared gradients. Adam's average of gradients
            is equivalent to momentum β₁ with steps (1 - β₁) times as large: pass
            `lr=(1 - beta1) * lr, momentum=beta1`; `max_lr` is in these units too. Weight decay is
            ignored.

    Returns:
        The forecast: losses, outputs, the time of each eigenmode, and the largest stable step.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: Shapes do not fit, something is not finite, `lr` is not positive, or the model
            has no kernel; see `torch_ntk.empirical_ntk`.

    References:
        Lee et al., "Wide neural networks of any depth evolve as linear models under gradient
        descent" (2019).

    Example:
        A linear model is its own linearization:

        >>> import torch
        >>> from torch_ntk.forecasting import forecast
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.ones(1, 1).double(), torch.ones(1, 1).double()
        >>> print(forecast(model, x, y, lr=0.5, steps=3))
        training loss 0.5 -> 0.007812 at step 3; lr 0.5, largest stable 2; 1 of 1 modes learned
        by then
    """
    check_choice(
        "output", output, _OUTPUTS, "A forecast with 'trace' would learn O times too fast."
    )
    if not isinstance(model, nn.Module):
        raise type_error("model", "an nn.Module", describe(model))
    # Checked again later; here so that a mistake is reported before the kernel is computed.
    check_learning_rate(lr)
    check_momentum(momentum)
    read_steps(steps)
    read_loss(loss, reduction)
    check_tensor("y", y)

    def kernel(a: BatchLike, b: BatchLike | None) -> Tensor:
        return empirical_ntk(
            model,
            a,
            b,
            output=output,
            method=method,
            params=params,
            batch_size=batch_size,
            dtype=dtype,
            progress=progress,
            forward_fn=forward_fn,
            coupled=coupled,
            training=training,
            precondition=precondition,
        )

    def outputs(a: BatchLike, name: str) -> Tensor:
        how: dict[str, Any] = {"forward_fn": forward_fn, "coupled": coupled, "training": training}
        return outputs_of(model, a, params, dtype, name=name, **how)

    test = None if x_test is None else outputs(x_test, "x_test")
    return forecast_from_kernel(
        kernel(x, None),
        outputs(x, "x"),
        y,
        loss=loss,
        lr=lr,
        steps=steps,
        momentum=momentum,
        reduction=reduction,
        k_test_train=None if x_test is None else kernel(x_test, x),
        test_outputs=test,
        progress=progress,
    )


def outputs_of(
    model: nn.Module,
    x: BatchLike,
    params: ParameterSelection = None,
    dtype: torch.dtype | None = torch.float64,
    *,
    name: str = "x",
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
) -> Tensor:
    """The outputs `[N, O]` of a network in eval mode; the call leaves no trace in the network.

    Args:
        model: The network.
        x: A batch of N samples, in any form that `torch_ntk.empirical_ntk` takes.
        params: As in `torch_ntk.empirical_ntk`.
        dtype: The dtype of the evaluation; None means the model's own.
        name: The caller's name of `x`, for messages.
        forward_fn: As in `torch_ntk.empirical_ntk`.
        coupled: As in `torch_ntk.empirical_ntk`.
        training: As in `torch_ntk.empirical_ntk`.

    Raises:
        TypeError, ValueError: As `torch_ntk.empirical_ntk`.
    """
    network = unwrap(model)
    if coupled:
        batches = CoupledBatches(x, None, "full")
        whole, forward_fn = batches.model(network, forward_fn)
        with evaluating_on(whole, batches.sample, forward_fn, training=training):
            fn = model_function(whole, params, dtype, forward_fn, coupled)
            samples = fn.input(name, batches.sample)
            keep_hooks_that_matter(fn, samples)
            return batches.outputs_of(_evaluated(fn, samples))[0]
    with evaluating_on(network, x, forward_fn, training=training):
        fn = model_function(network, params, dtype, forward_fn)
        samples = fn.input(name, x)
        keep_hooks_that_matter(fn, samples)
        return torch.cat([_evaluated(fn, part) for part in samples.split(_CHUNK)])


def _evaluated(fn: ModelFunction, x: Batch) -> Tensor:
    """Outputs `[N, O]`, with gradients enabled, because a forward may itself use autograd."""
    out: Tensor = fn.exact_plain.run(x, lambda found: found.outputs.detach())
    return out
