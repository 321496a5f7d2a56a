"""The test whether two computations of the same numbers agree up to rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def agree(
    a: Iterable[Tensor],
    b: Iterable[Tensor],
    slack: float = 1.0,
    precision: torch.dtype | None = None,
) -> bool:
    """Whether corresponding tensors differ by no more than rounding.

    They agree if `max |a - b| <= slack * sqrt(eps) * max(|a|, |b|)`, where both maxima are over the
    entries of all tensors. This means that about half of the digits are equal. Tensors of different
    shapes do not agree, and NaN agrees with nothing.

    Args:
        a: The tensors of the first computation, of any shapes.
        b: The tensors of the second computation, in the same order.
        slack: A factor on the tolerance.
        precision: The least precise floating type to which the computation rounds on its way, if
            that is less precise than the tensors. `eps` is the larger one of the two.
    """
    scale, difference = 0.0, 0.0
    eps = 0.0 if precision is None else torch.finfo(precision).eps
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
    return bool(difference <= slack * eps**0.5 * scale)
