"""Linear layers on flattened images whose channels are innermost in memory.

`F.linear(y.flatten(1), W)` pulls a cotangent back in the order of `y.flatten(1)`, channels
outermost, and whatever comes before then reads two layouts at once, at a third of the speed. With
the positions of both factors permuted alike, the cotangent has the layout of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _wide

_FLATTENING = (torch.flatten, torch.reshape, Tensor.flatten, Tensor.reshape)
_MOST = 2**20  # entries of a weight, which is permuted for every pass


class Flattened:
    """Calls functions, each in the layout that is the fastest for it.

    Those are linear ones on what was flattened, and convolutions with a wide weight (see `_wide`).
    """

    def __init__(self) -> None:
        self._images: dict[int, tuple[Tensor, Tensor, tuple[int, int]]] = {}

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`func(*args, **kwargs)`."""
        if func is F.linear and len(args) >= 2 and id(args[0]) in self._images:
            flat, image, versions = self._images[id(args[0])]
            weight = args[1]
            if versions == (flat._version, image._version) and weight.numel() <= _MOST:
                c, h, w = image.shape[1:]
                inner = weight.reshape(-1, c, h, w).permute(0, 2, 3, 1).flatten(1)
                return F.linear(image.permute(0, 2, 3, 1).flatten(1), inner, *args[2:], **kwargs)
        out = _wide.call(func, args, kwargs)
        if func in _FLATTENING and args and _is_flattened(args[0], out):
            # Both are kept, so that no other tensor has the same number.
            self._images[id(out)] = (out, args[0], (out._version, args[0]._version))
        return out


def _is_flattened(image: Tensor, out: Tensor) -> bool:
    """Whether `out` `[N, C·H·W]` is an image with its channels innermost, in another order."""
    if not _wide.are_innermost(image) or out.ndim != 2 or len(out) != len(image):
        return False
    return not image.is_inference()
