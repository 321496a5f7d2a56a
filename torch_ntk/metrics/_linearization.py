"""The distance between a network's outputs and those of its linearization."""

from __future__ import annotations

import math

from torch import Tensor

from ..linalg import as_float64
from ._kernels import (
    check_same_device,
    check_same_shape,
    frobenius,
    scalar,
)


def linearization_gap(f_t: Tensor, f_lin: Tensor, f_0: Tensor) -> Tensor:
    """The part of the function's movement that is not linear, ‖f_t - f_t^lin‖ / ‖f_t - f_0‖.

    f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩ is the first-order Taylor expansion in the parameters, at
    the parameters that training has reached. The gap is 0 if training is exactly lazy; a value near
    1 or above means that the linear model does not explain the movement. It is the difference of
    Lee et al. 2019, relative to the movement of the function.

    Where nothing has moved at all (both norms are 0, as at the first step) the gap is 0. Where
    the function is back exactly at f_0 and its linearization is not, it is infinite.

    Args:
        f_t: The network's outputs now, of any shape, usually `[N, O]`.
        f_lin: The linearization's outputs at the same parameters, of the same shape.
        f_0: The network's outputs at the start, of the same shape.

    Returns:
        A 0-dim float64 tensor in [0, ∞], without unit.

    Raises:
        TypeError: An argument is not a dense tensor of real floating-point numbers.
        ValueError: An argument is empty or not finite, or shapes or devices differ.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import linearization_gap
        >>> f_0, f_lin, f_t = torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])
        >>> linearization_gap(f_t, f_lin, f_0).item()
        0.75
    """
    now = as_float64("f_t", f_t)
    linear = as_float64("f_lin", f_lin)
    start = as_float64("f_0", f_0)
    for name, given, value in (("f_lin", f_lin, linear), ("f_0", f_0, start)):
        check_same_device(name, given.device, "f_t", f_t.device)
        check_same_shape(name, value, "f_t", now)
    gap = frobenius(now - linear)
    moved = frobenius(now - start)
    if moved == 0.0:
        return scalar(0.0 if gap == 0.0 else math.inf, now)
    return scalar(gap / moved, now)
