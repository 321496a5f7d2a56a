"""The empirical NNGP kernel: the covariance of the outputs over the output units."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_positive_int
from .._functional import model_function, quiet
from .._types import ModelLike, ParameterSelection
from ._api import _module_and_device, _rounded, _second
from ._blocks import Backoff, plan
from ._trial import try_out


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
        Lee et al., "Deep neural networks as Gaussian processes" (2018), equation 5.

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> empirical_nngp(lambda p, x: p["w"] * x, torch.eye(2), params={"w": torch.tensor(2.0)})
        tensor([[2., 0.],
                [0., 2.]])
    """
    if batch_size is not None:
        check_positive_int("batch_size", batch_size, "None chooses from the free memory.")
    with quiet(*_module_and_device(model, x1)):
        fn = model_function(model, params if not callable(params) else None, dtype)
        a = fn.input("x1", x1)
        b = None if x2 is None or x2 is x1 else _second(fn, a, x2)
        trial = try_out(fn, "x1", a)

        def outputs(x: Tensor) -> Tensor:
            out = torch.empty(x.shape[0], trial.outputs, dtype=fn.dtype, device=fn.device)
            size = batch_size or plan(x.shape[0], 2 * trial.activation_bytes, fn.device)

            def block(start: int, stop: int) -> None:
                out[start:stop] = fn.batch(fn.params, x[start:stop])

            Backoff(x.shape[0], size).run(block)
            return out

        f1 = outputs(a)
        kernel = f1 @ (f1 if b is None else outputs(b)).T / trial.outputs
        if b is None:
            kernel = (kernel + kernel.T) / 2
        return _rounded(kernel, fn.result_dtype)
