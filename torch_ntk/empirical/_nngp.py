"""The empirical NNGP kernel: the covariance of the outputs over the output units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .._checks import check_finite, check_positive_int, has_finite_sum, type_error
from .._functional import (
    CannotTransformError,
    ModelFunction,
    RightOperations,
    agree,
    evaluating,
    model_function,
    refuse_unsupported,
    transforming,
)
from .._types import ModelLike, ParameterSelection
from ..memory import Backoff, plan
from ._empirical_ntk import rounded, second_input
from .checksum import depends_on_batch
from .inspect import Inspection, inspect_forward


def empirical_nngp(
    model: ModelLike,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: ParameterSelection = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The kernel `K[n, m] = f(x1_n) · f(x2_m) / O`, `[N1, N2]`.

    For a network whose last layer has independent weights it converges, as all widths and O grow,
    to the covariance of the Gaussian process that the network is at initialization. Evaluated
    like `torch_ntk.empirical_ntk`: in eval mode and without a trace.

    Args:
        model: A module, or a function `f(params, x)` with `params`.
        x1: Inputs `[N1, ...]`.
        x2: Inputs `[N2, ...]`; None means x2 = x1, and the result is then exactly symmetric.
        params: Only for a function: its parameters.
        batch_size: Samples per forward pass; None chooses from the free memory.
        dtype: `torch.float32`, `torch.float64` or None for the model's own.

    Raises:
        TypeError, ValueError: As `torch_ntk.empirical_ntk`.

    References:
        Lee et al., "Deep neural networks as Gaussian processes" (2018).

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> empirical_nngp(lambda p, x: p["w"] * x, torch.eye(2), params={"w": torch.tensor(2.0)})
        tensor([[2., 0.],
                [0., 2.]])
    """
    if batch_size is not None:
        check_positive_int("batch_size", batch_size, "None chooses from the free memory.")
    if isinstance(model, nn.Module) and params is not None:
        raise type_error(
            "params",
            "None when `model` is a module",
            params,
            "The NNGP kernel does not differentiate: there is nothing to select.",
        )
    with evaluating(model, x1):
        # Frozen parameters do not matter here, as nothing is differentiated.
        fn = _function(model, x1, params, dtype)
        a = fn.input("x1", x1)
        b = None if x2 is None or x2 is x1 else second_input(fn, a, x2)
        forward = inspect_forward(fn, "x1", a)
        f1 = _outputs(fn, "x1", a, forward, batch_size)
        f2 = f1 if b is None else _outputs(fn, "x2", b, forward, batch_size)
        kernel = f1 @ f2.T / forward.outputs
        if b is None:
            kernel = (kernel + kernel.T) / 2
        return rounded(kernel, fn.result_dtype)


def _function(
    model: ModelLike, x: Tensor, params: ParameterSelection, dtype: torch.dtype | None
) -> ModelFunction:
    if not isinstance(model, nn.Module):
        return model_function(model, params, dtype)
    if next(model.parameters(), None) is not None:
        return model_function(model, lambda name, tensor: True, dtype)
    # A module without parameters has outputs all the same; the inputs say where and how precise.
    refuse_unsupported(model)
    fixed = {n: b.clone() for n, b in model.named_buffers()}
    like = x if isinstance(x, Tensor) and x.is_floating_point() else torch.zeros(())
    nothing = {"none": like.new_zeros((), device=x.device if isinstance(x, Tensor) else None)}
    return model_function(lambda p, z: functional_call(model, fixed, (z,)), nothing, dtype)


def _outputs(
    fn: ModelFunction, name: str, x: Tensor, forward: Inspection, batch_size: int | None
) -> Tensor:
    """Outputs `[N, O]`, each sample evaluated alone, and compared with batches of them."""
    out = torch.empty(x.shape[0], forward.outputs, dtype=fn.dtype, device=fn.device)
    size = batch_size or plan(x.shape[0], 2 * forward.activation_bytes, fn.device)
    plain = fn.exact_plain

    def block(start: int, stop: int) -> None:
        out[start:stop] = _alone(fn, x[start:stop])
        first = max(0, min(start, stop - 2))  # at least two samples, if there are
        own = out[first:stop]
        together = plain.run(x[first:stop], lambda found: found.outputs.detach())
        if bool(own.isfinite().all()) and not agree([own], [together]):
            raise depends_on_batch(plain, x[first:stop], "outputs")

    Backoff(x.shape[0], size).run(block)
    if not has_finite_sum(out):
        if x.is_floating_point():
            check_finite(name, x, "Remove or impute those entries.")
        check_finite(f"model({name})", out, "Look for an overflow or a division of zero.")
    return out


def _alone(fn: ModelFunction, x: Tensor) -> Tensor:
    try:
        with transforming(), RightOperations():
            rows: Tensor = vmap(fn.single, in_dims=(None, 0))(fn.params, x)
        return rows
    except CannotTransformError:
        return torch.stack([fn.single(fn.params, sample) for sample in x])
