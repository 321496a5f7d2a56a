"""Inner products of the rows of two matrices, by the faster of two libraries.

On a CPU torch multiplies matrices of float32 by MKL, which on one core of an AMD EPYC reached 100
GFLOP/s where convolutions, which are oneDNN's, reached 170 to 240. A convolution with a filter of a
single pixel is a product of matrices: pixels are the rows, their channels the columns. How the two
compare on processors of Intel has not been measured.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# torch gives oneDNN convolutions of so many images, whatever their layout; rows are divided evenly
# among them.
_IMAGES = 16
# Fewer rows or columns run at no more speed, or the blocks of more columns leave the caches.
_ROWS, _COLUMNS = 256, (64, 8192)


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ` `[r, s]` of rows `[r, k]` and `[s, k]`."""
    k = a.shape[1]
    if not (_is_convolution(a, b) and min(len(a), len(b)) >= _ROWS):
        return a @ b.T
    if not _COLUMNS[0] <= k <= _COLUMNS[1]:
        return a @ b.T
    whole = len(a) - len(a) % _IMAGES
    images = a[:whole].reshape(_IMAGES, 1, -1, k).permute(0, 3, 1, 2)
    found = F.conv2d(images, b.reshape(len(b), k, 1, 1)).permute(0, 2, 3, 1).reshape(whole, len(b))
    return found if whole == len(a) else torch.cat([found, a[whole:] @ b.T])


def takes_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions of that kind are oneDNN's."""
    if device.type != "cpu" or dtype != torch.float32:
        return False
    known = torch.backends.mkldnn
    return bool(known.is_available() and known.enabled)  # type: ignore[no-untyped-call]


def _is_convolution(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and takes_onednn(a.device, a.dtype)
        and not (a.requires_grad or b.requires_grad)
    )
