"""The empirical NNGP kernel: the covariance of the outputs over the output units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._checks import check_finite, check_positive_int, type_error
from .._functional import ModelFunction, model_function, quiet, refuse_unsupported
from .._types import ModelLike, ParameterSelection
from ..memory import Backoff, plan
from ._api import _module_and_device, _rounded, _second
from ._trial import Trial, try_out


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
    with quiet(*_module_and_device(model, x1)):
        # Frozen parameters do not matter here, as nothing is differentiated.
        fn = _function(model, x1, params, dtype)
        a = fn.input("x1", x1)
        b = None if x2 is None or x2 is x1 else _second(fn, a, x2)
        trial = try_out(fn, "x1", a if b is None or a.shape[0] > 1 else torch.cat([a, b]))
        f1 = _outputs(fn, "x1", a, trial, batch_size)
        f2 = f1 if b is None else _outputs(fn, "x2", b, trial, batch_size)
        kernel = f1 @ f2.T / trial.outputs
        if b is None:
            kernel = (kernel + kernel.T) / 2
        return _rounded(kernel, fn.result_dtype)


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
    fn: ModelFunction, name: str, x: Tensor, trial: Trial, batch_size: int | None
) -> Tensor:
    out = torch.empty(x.shape[0], trial.outputs, dtype=fn.dtype, device=fn.device)
    size = batch_size or plan(x.shape[0], 2 * trial.activation_bytes, fn.device)

    def block(start: int, stop: int) -> None:
        out[start:stop] = fn.each(fn.params, x[start:stop])

    Backoff(x.shape[0], size).run(block)
    return check_finite(f"model({name})", out, "Look for an overflow or a division of zero.")
