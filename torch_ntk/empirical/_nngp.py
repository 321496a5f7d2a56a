"""The empirical NNGP kernel: the mean over output units of products of outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_finite, has_finite_sum, type_error
from .._functional import (
    Batch,
    CannotTransformError,
    ModelFunction,
    RightOperations,
    agree,
    call_with,
    evaluating_on,
    model_function,
    refuse_unsupported,
    transforming,
)
from .._types import BatchLike, ForwardFn, ModelLike, Parameters, ParameterSelection
from ..memory import Backoff, plan
from ._computation import rounded, second_input
from ._coupled import CoupledBatches
from ._empirical_ntk import check_settings
from .checksum import depends_on_batch
from .inspect import Inspection, inspect_forward


def empirical_nngp(
    model: ModelLike,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    params: ParameterSelection = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
) -> Tensor:
    """The kernel `K[n, m] = f(x1_n) · f(x2_m) / O`, `[N1, N2]`.

    As all widths and O grow, a network whose last layer has independent weights converges to a
    Gaussian process at initialization, and K to its covariance. As in `torch_ntk.empirical_ntk`,
    the model is in eval mode unless `training=True`, and its state does not change.

    Args:
        model: A module, or a function `f(params, x)` with `params`.
        x1: A batch of N1 samples.
        x2: A batch of N2 samples; None means x2 = x1, and the result is then exactly symmetric.
        params: The parameters, if `model` is a function.
        batch_size: The number of samples per forward pass; None chooses from the free memory.
        dtype: `torch.float32`, `torch.float64` or None for the model's own.
        forward_fn: As in `torch_ntk.empirical_ntk`.
        coupled: As in `torch_ntk.empirical_ntk`.
        training: As in `torch_ntk.empirical_ntk`.

    Raises:
        TypeError, ValueError: As in `torch_ntk.empirical_ntk`.

    References:
        Lee et al., "Deep neural networks as Gaussian processes" (2018).

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> empirical_nngp(lambda p, x: p["w"] * x, torch.eye(2), params={"w": torch.tensor(2.0)})
        tensor([[2., 0.],
                [0., 2.]])
    """
    check_settings(coupled, training, batch_size)
    if isinstance(model, nn.Module) and params is not None:
        raise type_error(
            "params",
            "None when `model` is a module",
            params,
            "The NNGP kernel does not differentiate: there is nothing to select.",
        )
    batches = CoupledBatches(x1, x2, "full") if coupled else None
    if batches is not None:
        model, forward_fn = batches.model(model, forward_fn)
        x1, x2 = batches.sample, None
    with evaluating_on(model, x1, forward_fn, training=training):
        # All parameters are selected, also frozen ones, since nothing is differentiated.
        fn = _function(model, x1, params, dtype, forward_fn, coupled)
        a = fn.input("x1", x1)
        b = None if x2 is None or x2 is x1 else second_input(fn, a, x2)
        forward = inspect_forward(fn, "x1", a, differentiated=False)
        f1 = _outputs(fn, "x1", a, forward, batch_size)
        if batches is not None:
            f1, f2 = batches.outputs_of(f1)
        else:
            f2 = f1 if b is None else _outputs(fn, "x2", b, forward, batch_size)
        kernel = f1 @ f2.T / f1.shape[1]
        if b is None and (batches is None or len(batches.rows) == 1):
            kernel = (kernel + kernel.T) / 2
        return rounded(kernel, fn.result_dtype)


def _function(
    model: ModelLike,
    x: BatchLike,
    params: ParameterSelection,
    dtype: torch.dtype | None,
    forward_fn: ForwardFn | None,
    coupled: bool,
) -> ModelFunction:
    if not isinstance(model, nn.Module):
        return model_function(model, params, dtype, forward_fn, coupled)
    if next(model.parameters(), None) is not None:
        return model_function(model, lambda name, tensor: True, dtype, forward_fn, coupled)
    # A module without parameters is evaluated with the device and dtype of the inputs.
    refuse_unsupported(model, coupled=coupled)
    fixed = {n: b.clone() for n, b in model.named_buffers()}
    batch = Batch.of("x1", x)
    like = next(iter(batch.floating), torch.zeros(()))
    nothing = {"none": like.new_zeros((), device=batch.tensors[0].device)}

    def outputs(params: Parameters, value: Any) -> Any:
        return call_with(model, fixed, value, forward_fn)

    return model_function(outputs, nothing, dtype, coupled=coupled)


def _outputs(
    fn: ModelFunction, name: str, x: Batch, forward: Inspection, batch_size: int | None
) -> Tensor:
    """Return outputs `[N, O]` of samples evaluated alone, after comparing them with batches."""
    out = torch.empty(len(x), forward.outputs, dtype=fn.dtype, device=fn.device)
    size = batch_size or plan(len(x), 2 * forward.activation_bytes, fn.device)
    plain = fn.exact_plain

    def block(start: int, stop: int) -> None:
        out[start:stop] = _alone(fn, x[start:stop])
        first = max(0, min(start, stop - 2))  # at least two samples, if x has two
        own = out[first:stop]
        together = plain.run(x[first:stop], lambda found: found.outputs.detach())
        if bool(own.isfinite().all()) and not agree([own], [together], precision=forward.precision):
            raise depends_on_batch(plain, x[first:stop], "outputs")

    Backoff(len(x), size).run(block)
    if not has_finite_sum(out):
        x.check_finite(name, "Remove or impute those entries.")
        check_finite(f"model({name})", out, "Look for an overflow or a division of zero.")
    return out


def _alone(fn: ModelFunction, x: Batch) -> Tensor:
    try:
        with transforming(), RightOperations():
            return fn.of_each(x, lambda sample: fn.single(fn.params, sample))
    except CannotTransformError:
        # Gradients are enabled, because a forward may call autograd itself.
        own = fn.exact_plain
        each = [own.run(x[n : n + 1], lambda found: found.outputs.detach()) for n in range(len(x))]
        return torch.cat(each)
