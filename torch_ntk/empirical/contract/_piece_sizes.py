"""The sizes of the pieces of a computation, which stay in the caches of a CPU or fill a GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from ...memory import aim, limit

_MIB = 1024**2
_FEW, _LEAST = 4, 2  # samples


@dataclass(frozen=True)
class PieceSizes:
    """The sizes for one type of device.

    Attributes:
        columns: The bytes of a block of columns of a Jacobian.
        features: The least number of features in a product. With fewer, the cotangents would be
            read too often, so that blocks of columns become larger.
        chunk: The bytes of a product over positions, before it is summed.
        again: The bytes of an intermediate result that is written and then read.
        rows: The number of rows below which products do not reach full speed.
        overhead: The time to set up the product of one piece of one weight, in multiplications.
        tall: The number of rows over positions below which products do not reach full speed.
        backward: The bytes of a batch of a backward pass; None fills the memory.
    """

    columns: int
    features: int
    chunk: int
    again: int
    rows: int
    overhead: float
    tall: int
    backward: int | None

    def samples(self, each: int) -> int:
        """Return how many samples of `each` bytes a backward pass evaluates at once.

        A large part of passes of few samples is overhead: calls, and weights that oneDNN reorders
        in each. Large samples do not fit in the caches anyway, so that a few of them are evaluated
        together; but not the largest ones, whose overhead is small.
        """
        sparing = aim()
        most = self.backward if sparing is None else min(self.backward or sparing, sparing // 3)
        if most is None:
            return sys.maxsize
        fitting = most // max(1, each)
        few = min(_FEW, _FEW * most // max(1, each))
        return max(fitting, few, _LEAST)


# Larger batches of a backward pass do not fit in the caches of a CPU, and the operating system maps
# and clears the memory of each of their tensors again.
ON_CPU = PieceSizes(
    columns=8 * _MIB,
    features=64,
    chunk=64 * _MIB,
    again=8 * _MIB,
    rows=160,
    overhead=3e6,
    tall=64,
    backward=160 * _MIB,
)
# Every piece needs a few kernel launches, which take longer than a small product.
ON_GPU = PieceSizes(
    columns=256 * _MIB,
    features=64,
    chunk=512 * _MIB,
    again=256 * _MIB,
    rows=256,
    overhead=1.5e9,
    tall=2048,
    backward=None,
)


def piece_sizes(device: torch.device) -> PieceSizes:
    """Return the sizes for a device."""
    return ON_CPU if device.type == "cpu" else ON_GPU


def limited_size(size: int) -> int:
    """Return `size`, or fewer bytes if little memory is allowed or aimed at."""
    bounds = (bound // 8 for bound in (limit(), aim()) if bound is not None)
    return min(size, *bounds, size)
