"""Whether two computations of the same numbers agree."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def agree(a: Iterable[Tensor], b: Iterable[Tensor], slack: float = 1.0) -> bool:
    """Whether corresponding tensors differ by rounding only, measured by the largest entry of all.

    Half of the digits must be the same, but for a factor `slack`. NaN agrees with nothing.
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
    return bool(difference <= slack * eps**0.5 * scale)
