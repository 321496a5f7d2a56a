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
    entries of all tensors: about half of the digits are equal. `eps` is the largest of those of the
    tensors and of `precision`, to which a computation may round on its way. Tensors of different
    shapes do not agree, and NaN agrees with nothing.
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
