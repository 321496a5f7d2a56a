"""Values between regions, stored only at the displacements that are needed.

The covariances of a value between all pairs of positions (p, p') are `[dy, dx, P, Q]` for each pair
of images, with a picture of the first positions for each displacement. The displacement p' - p has
the number `(p' - p) mod P` along an axis. If those up to R are enough, there are 2R + 1: from 0 to
R, and then from -R to -1. The same position in both images is the displacement 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...operations import State

Pair = tuple[int, int]


@dataclass(frozen=True)
class Extent:
    """The positions and displacements at which a value is kept.

    Attributes:
        positions: `(P, Q)`.
        displacements: The number of displacements along either axis.
    """

    positions: Pair
    displacements: Pair

    @classmethod
    def within(cls, positions: Pair, reach: Pair) -> Extent:
        """Return the extent with all displacements that are at most `reach`."""
        rows, columns = (min(n, 2 * r + 1) for n, r in zip(positions, reach, strict=True))
        return cls(positions, (rows, columns))

    @property
    def entries(self) -> int:
        """The number of covariances that are kept."""
        return math.prod(self.positions) * math.prod(self.displacements)

    def pack(self, a: Tensor, full: bool) -> Tensor:
        """The entries that are kept of `a`, `[n, P, Q, P, Q]` or `[n, P, Q]`, as `[n, entries]`."""
        return a.flatten(1)[:, _order(self)] if full else a.flatten(1)

    def unpack(self, a: Tensor, full: bool) -> Tensor:
        """`[n, P, Q, P, Q]` or `[n, P, Q]` from `[n, entries]`, 0 where nothing is kept."""
        if not full:
            return a.reshape(len(a), *self.positions)
        whole = a.new_zeros(len(a), math.prod(self.positions) ** 2)
        whole[:, _order(self)] = a
        return whole.view(len(a), *self.positions, *self.positions)


@dataclass(frozen=True)
class Packed:
    """A value that one region computes and others take.

    Attributes:
        values: K and then Θ of every pair, `[pairs, 2 · entries]`.
        extent: The positions and displacements of the entries.
    """

    values: Tensor
    extent: Extent

    @property
    def same_positions(self) -> Tensor:
        """K at the same position of both images, `[pairs, P, Q]`."""
        p, q = self.extent.positions
        return self.values[:, : p * q].reshape(-1, p, q)


Value = State | Packed
"""A value of the network for a block of pairs."""


@lru_cache(maxsize=32)
def _order(extent: Extent) -> Tensor:
    """Return where each kept entry is in `[P, Q, P, Q]`."""
    (p, q), counts = extent.positions, extent.displacements
    y, x = torch.arange(p)[:, None], torch.arange(q)
    down, right = (_displacements(n) for n in counts)
    y2, x2 = (y + down.view(-1, 1, 1, 1)) % p, (x + right.view(-1, 1, 1)) % q
    return (((y * q + x) * p + y2) * q + x2).flatten()


def _displacements(count: int) -> Tensor:
    """Return the displacements with the numbers 0 … count - 1."""
    numbers = torch.arange(count)
    return torch.where(numbers > count // 2, numbers - count, numbers)
