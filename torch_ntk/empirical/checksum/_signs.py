"""Random weights that no caller's generator knows of."""

from __future__ import annotations

import torch
from torch import Tensor

# One generator for the process: every call draws others, and none touches the global ones.
_generator = torch.Generator().manual_seed(2018)


def signs(*shape: int, like: Tensor) -> Tensor:
    """A tensor of random weights of either sign, of the type and on the device of `like`.

    Their sizes vary between 0.5 and 1.5: with ±1 alone, a difference between samples that lie
    evenly around another one would cancel in one of a few calls.
    """
    drawn = torch.rand(2, *shape, generator=_generator, dtype=torch.float64)
    return ((drawn[0] + 0.5) * torch.where(drawn[1] < 0.5, -1.0, 1.0)).to(like)
