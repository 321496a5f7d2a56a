"""How much is worked on at once: pieces that stay in the caches of a CPU, or fill a GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from ...memory import aim, limit

_MIB = 1024**2
_FEW, _LEAST = 4, 2  # samples


@dataclass(frozen=True)
class PieceSizes:
    """Sizes for one kind of device.

    Attributes:
        columns: Bytes of a block of columns of a Jacobian.
        features: Products with fewer features read the cotangents too often; blocks of columns
            then become larger.
        chunk: Bytes of a product over positions, before it is summed.
        again: Bytes of what is written and read again at once.
        rows: Products of fewer rows run below their speed.
        overhead: Multiplications that could be made while the product of one piece of one weight
            is set up.
        tall: Positions of rows that are multiplied at once; fewer run below their speed.
        backward: Bytes of a batch of a backward pass; None fills the memory.
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
        """How many samples of `each` bytes a backward pass takes at once.

        Passes of few samples are to a large part overhead: calls, and weights that oneDNN reorders
        for each. Samples that are large leave the caches all the same, so that a few of them go
        together, but not of the largest, whose overhead is small.
        """
        sparing = aim()
        most = self.backward if sparing is None else min(self.backward or sparing, sparing // 3)
        if most is None:
            return sys.maxsize
        fitting = most // max(1, each)
        few = min(_FEW, _FEW * most // max(1, each))
        return max(fitting, few, _LEAST)


# Larger batches of a backward pass leave the caches of a CPU, and each of their tensors is mapped
# and cleared anew by the operating system.
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
# Every piece is a few launches, which take longer than a small product.
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
    """The sizes for a device."""
    return ON_CPU if device.type == "cpu" else ON_GPU


def limited_size(size: int) -> int:
    """At most so many bytes, and less where little memory is allowed or wanted."""
    bounds = (bound // 8 for bound in (limit(), aim()) if bound is not None)
    return min(size, *bounds, size)
