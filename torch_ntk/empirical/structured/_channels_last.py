"""Convolutions on a CPU with their channels innermost in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(weight: Tensor) -> Tensor:
    """The weight of a convolution with the channels innermost in memory.

    oneDNN follows the layout of the weight; with channels innermost it is up to five times as fast
    where they are few, and patches are gathered by whole rows. The strides tell, even of a weight
    with a single tap.
    """
    _, c, h, w = weight.shape
    if weight.stride() == (c * h * w, 1, w * c, c):
        return weight
    return torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
