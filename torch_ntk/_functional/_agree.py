"""Whether two computations of the same numbers agree."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .._types import Parameters


def agree(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Whether corresponding tensors differ by rounding only, measured by the largest entry of all.

    Half of the digits must be the same. NaN agrees with nothing.
    """
    scale, difference, eps = 0.0, 0.0, 0.0
    for v, w in zip(a, b, strict=True):
        if v.shape != w.shape:
            return False
        if v.numel():
            scale = max(scale, float(v.abs().max()), float(w.abs().max()))
            largest = float((v - w).abs().max())
            if math.isnan(largest):
                return False
            difference = max(difference, largest)
            eps = max(eps, torch.finfo(v.dtype).eps)
    return bool(difference <= eps**0.5 * scale)


def check_batching(batched: Parameters, alone: Parameters) -> None:
    """Raise `RuntimeError` if vmap changed a result.

    Some of its batching rules mistake one dimension for another when they have the same length
    (seen for `prelu`, whose Jacobians are wrong when there are as many samples as outputs).
    """
    if not agree(batched.values(), (alone[k] for k in batched)):
        raise RuntimeError("vmap changes the result of an operation of this model")
