"""The covariances of a value for a block of pairs of images, in one of three forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

Variances: TypeAlias = tuple[Tensor, Tensor]
"""Of a value in the images of x1 and of x2, shaped to broadcast with the block; see `spread`."""


@dataclass(frozen=True)
class State:
    """Covariance and tangent kernel of one value, for images n of x1 and m of x2.

    Only what the rest of the network depends on is computed: the same position in both images,
    `[n1, n2, P, Q]`, unless an average over positions follows, which needs every pair of
    positions, `[n1, n2, P, Q, P', Q']`. Vectors are images of one position.

    Where a network needs the same position only, the covariance is kept as the distance
    `d = K(x, x) + K(x', x') - 2 K(x, x') = E(u - v)²`: K in float64 fixes the angle between two
    nearly equal inputs only to 1e-8, and ReLU networks depend on that angle; d fixes it to 1e-16.

    Attributes:
        nngp: The covariance K, or with `distance` the distance d.
        ntk: Θ; a number (no axes) while it is 0 everywhere; None if it is not wanted.
        distance: Whether `nngp` is d.
        full: Whether all pairs of positions are there, and not the same position only.
    """

    nngp: Tensor
    ntk: Tensor | None
    distance: bool
    full: bool

    def covariance(self, variances: Variances | None) -> Tensor:
        """K, computed from the variances of the value in both images if it is kept as d."""
        if not self.distance:
            return self.nngp
        assert variances is not None
        return (variances[0] + variances[1] - self.nngp) / 2

    def same_positions(self) -> State:
        """The part with p = p'."""
        if not self.full:
            return self
        ntk = self.ntk
        if ntk is not None and ntk.ndim:
            ntk = at_same_positions(ntk)
        return State(at_same_positions(self.nngp), ntk, self.distance, False)

    def each(self, function: Callable[[Tensor], Tensor]) -> State:
        """`function`, which keeps 0, of K (or d) and of Θ."""
        ntk = self.ntk
        if ntk is not None and ntk.ndim:
            ntk = function(ntk)
        return replace(self, nngp=function(self.nngp), ntk=ntk)


@dataclass(frozen=True)
class IdenticalImages:
    """The pairs of a block that are an image with itself, or with an exact copy of it.

    Their correlation at the same position is exactly 1. A computed covariance fixes the angle to
    1e-8 only, so nonlinear operations put in what one-dimensional formulas give.

    Attributes:
        rows: Their rows in the block, `[pairs]`.
        columns: Their columns.
        variances: Per input of the operation, its variances in these images, `[pairs, P, Q]`.
    """

    rows: Tensor
    columns: Tensor
    variances: Sequence[Tensor | None]


def at_same_positions(a: Tensor) -> Tensor:
    """`[..., P, Q, P, Q]` to `[..., P, Q]`, the entries with p = p', as a view."""
    return a.diagonal(dim1=-4, dim2=-2).diagonal(dim1=-3, dim2=-2)


def spread(q: Tensor, side: int, full: bool) -> Tensor:
    """Variances `[N, P, Q]` of the images of one side, shaped to broadcast with a block."""
    q = q.unsqueeze(1 - side)
    if not full:
        return q  # [n1, 1, P, Q] or [1, n2, P, Q]
    return q[..., None, None] if side == 0 else q[..., None, None, :, :]


def zero(like: Tensor) -> Tensor:
    """A Θ of 0 everywhere, which no operation needs to touch."""
    return torch.zeros((), dtype=like.dtype, device=like.device)
