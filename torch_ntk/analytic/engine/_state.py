"""The covariances of a value for a block of pairs of images, in one of three forms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """Covariance and tangent kernel of one value, for images n of x1 and m of x2.

    Only what the rest of the network can see is held: the same position in both images,
    `[n1, n2, P, Q]`, unless an average over positions follows, which needs every pair of
    positions, `[n1, n2, P, Q, P', Q']`. Vectors are images of one position.

    Where nothing but equal positions is held, the covariance is kept as the distance
    `d = K(x, x) + K(x', x') - 2 K(x, x') = E(u - v)²`: K in float64 fixes the angle between two
    nearly equal inputs only to 1e-8, and ReLU networks depend on that angle; d fixes it to 1e-16.

    Attributes:
        first: The distance d, or the covariance K.
        ntk: Θ; a number (no axes) while it is 0 everywhere; None if it is not wanted.
        distance: Whether `first` is d.
        full: Whether all pairs of positions are held.
    """

    first: Tensor
    ntk: Tensor | None
    distance: bool
    full: bool

    def covariance(self, q1: Tensor | None, q2: Tensor | None) -> Tensor:
        """K, from the variances of the value in both images if it is held as a distance."""
        if not self.distance:
            return self.first
        assert q1 is not None
        assert q2 is not None
        return (q1 + q2 - self.first) / 2

    def equal_positions(self) -> State:
        """The part with p = p'."""
        if not self.full:
            return self
        ntk = self.ntk
        if ntk is not None and ntk.ndim:
            ntk = at_equal_positions(ntk)
        return State(at_equal_positions(self.first), ntk, self.distance, False)


def at_equal_positions(a: Tensor) -> Tensor:
    """`[..., P, Q, P, Q]` to `[..., P, Q]`, the entries with p = p'."""
    return a.diagonal(dim1=-4, dim2=-2).diagonal(dim1=-3, dim2=-2)


def spread(q: Tensor, side: int, full: bool) -> Tensor:
    """Variances `[N, P, Q]` of the images of one side, shaped to go with a block of pairs."""
    q = q.unsqueeze(1 - side)
    if not full:
        return q  # [n1, 1, P, Q] or [1, n2, P, Q]
    return q[..., None, None] if side == 0 else q[..., None, None, :, :]


def zero(like: Tensor) -> Tensor:
    """A Θ of 0, which no operation needs to touch."""
    return torch.zeros((), dtype=like.dtype, device=like.device)
