"""What a model returns, as one row of outputs per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import describe, type_error, value_error


def rows_of(out: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Outputs as `[N, O]` in `dtype`; a batch of one may come without its batch dimension.

    Raises:
        TypeError: Not one tensor of real floating-point numbers.
        ValueError: Not one row per sample.
    """
    if not isinstance(out, Tensor):
        raise type_error(
            "model",
            "a function that returns one tensor [N, ...]",
            describe(out),
            "Wrap it in a module whose forward returns the part you mean, for example its logits.",
        )
    if not out.is_floating_point():
        raise type_error(
            "model",
            "a function with real floating-point outputs",
            out,
            "Return logits instead of classes, and real and imaginary parts "
            "(torch.view_as_real) instead of complex numbers.",
        )
    n = x.shape[0]
    if n == 1:
        return out.reshape(1, -1).to(dtype)
    if out.ndim == 0 or out.shape[0] != n:
        raise value_error(
            "model",
            "a function that returns one row of outputs per sample",
            out,
            "Its forward must keep the batch dimension first, and return outputs, not a loss. A "
            "model for one sample at a time, or for a fixed number of samples, can be wrapped in "
            "a module that loops over the rows of its input.",
        )
    return out.reshape(n, -1).to(dtype)
