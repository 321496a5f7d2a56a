"""Convolutions whose weights are so many that another layout of them takes longer than their use.

Where images have their channels innermost in memory, torch copies the weight of a convolution into
that layout for every call, and oneDNN the copy into its own. For 512 channels on two images of 4×4
this takes several times as long as the convolution. The images are far smaller, so they are put
into the weight's layout, and the result into theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS = (F.conv2d, torch.conv2d)
_MOST = 2**20  # entries of a weight that every call may copy


def is_wide(weight: Tensor) -> bool:
    """Whether the weight stays in the layout in which it is."""
    return weight.numel() > _MOST


def call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`func(*args, **kwargs)`, and the result in the layout of the images."""
    if func not in _CONVOLUTIONS or len(args) < 2 or not _differ(*args[:2]):
        return func(*args, **kwargs)
    out = func(args[0].contiguous(), *args[1:], **kwargs)
    return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _differ(image: Tensor, weight: Tensor) -> bool:
    """Whether only the images have their channels innermost, and the weight is wide."""
    on_cpu = image.device.type == "cpu"  # elsewhere oneDNN has no part in it
    is_plain = weight.ndim == 4 and is_wide(weight) and weight.is_contiguous()
    return on_cpu and is_plain and are_innermost(image)


def are_innermost(image: Tensor) -> bool:
    """Whether an image `[N, C, H, W]` has its channels innermost in memory, and only so."""
    if image.ndim != 4:
        return False
    _, c, h, w = image.shape
    return min(c, h * w) > 1 and image.stride()[1:] == (1, w * c, c)
