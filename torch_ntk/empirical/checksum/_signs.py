"""Random weights from a private generator."""

from __future__ import annotations

import torch
from torch import Tensor

from .._recorder import unrecorded

# One generator for the process: every call draws other numbers, and the global generators are not
# used.
_generator = torch.Generator().manual_seed(2018)


def signs(*shape: int, like: Tensor) -> Tensor:
    """Return random weights of both signs, with the dtype and device of `like`.

    Their absolute values are between 0.5 and 1.5. With ±1 alone, opposite errors of several samples
    would cancel with a considerable probability.
    """
    with unrecorded():
        drawn = torch.rand(2, *shape, generator=_generator, device="cpu", dtype=torch.float64)
        return ((drawn[0] + 0.5) * torch.where(drawn[1] < 0.5, -1.0, 1.0)).to(like)
