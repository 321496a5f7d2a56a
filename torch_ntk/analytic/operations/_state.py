"""The covariances of a value for a block of pairs of images, in one of three forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

Variances: TypeAlias = tuple[Tensor, Tensor]
"""A value's variances in the images of x1 and of x2, in shapes that `spread` makes for a block."""


@dataclass(frozen=True)
class State:
    """The covariance and tangent kernel of one value, for images n of x1 and m of x2.

    It contains only the entries on which the rest of the network depends. These are the same
    position in both images, `[n1, n2, P, Q]`, unless an average over positions follows, which
    needs every pair of positions, `[n1, n2, P, Q, P', Q']`. Vectors are images of one position.

    If a network needs only the same position, the covariance is stored as the distance
    `d = K(x, x) + K(x', x') - 2 K(x, x') = E(u - v)²`: K in float64 determines the angle between
    two nearly equal inputs only to 1e-8, and ReLU networks depend on that angle; d determines it
    to 1e-16.

    Attributes:
        nngp: The covariance K, or with `distance` the distance d.
        ntk: Θ. It has no axes while it is 0 everywhere, and is None if only K is computed.
        distance: Whether `nngp` is d.
        full: Whether the state contains all pairs of positions, and not only the same position.
    """

    nngp: Tensor
    ntk: Tensor | None
    distance: bool
    full: bool

    def covariance(self, variances: Variances | None) -> Tensor:
        """Return K, which is computed from the value's variances if it is stored as d."""
        if not self.distance:
            return self.nngp
        assert variances is not None
        return (variances[0] + variances[1] - self.nngp) / 2

    def same_positions(self) -> State:
        """Return the entries with p = p'."""
        return replace(self.each(at_same_positions), full=False) if self.full else self

    def each(self, function: Callable[[Tensor], Tensor]) -> State:
        """Return the state with `function`, which maps 0 to 0, applied to K (or d) and to Θ."""
        ntk = self.ntk
        if ntk is not None and ntk.ndim:
            ntk = function(ntk)
        return replace(self, nngp=function(self.nngp), ntk=ntk)


@dataclass(frozen=True)
class IdenticalImages:
    """The entries of a block that pair an image with itself, or with an exact copy of it.

    Their correlation at the same position is exactly 1. A computed covariance determines the angle
    only to 1e-8, so nonlinear operations replace these entries by one-dimensional expectations.

    Attributes:
        rows: The rows of the entries in the block, `[pairs]`.
        columns: Their columns, `[pairs]`.
        variances: For each input of the operation, its variances in these images, `[pairs, P, Q]`.
    """

    rows: Tensor
    columns: Tensor
    variances: Sequence[Tensor | None]


def at_same_positions(a: Tensor) -> Tensor:
    """Return the entries with p = p' of `[..., P, Q, P, Q]`, as a view `[..., P, Q]`."""
    return a.diagonal(dim1=-4, dim2=-2).diagonal(dim1=-3, dim2=-2)


def joined_positions(a: Tensor) -> Tensor:
    """Join the axes of positions of `[..., P, Q, P, Q]`: `[..., T, T]`."""
    return a.flatten(-4, -3).flatten(-2)


def same_positions(a: Tensor, full: bool) -> Tensor:
    """Return the entries with p = p' of a state's tensor, as a view, which can be written to."""
    return at_same_positions(a) if full else a


def spread(q: Tensor, side: int, full: bool) -> Tensor:
    """Reshape variances `[N, P, Q]` of one side's images so that they broadcast with a block."""
    q = q.unsqueeze(1 - side)
    if not full:
        return q  # [n1, 1, P, Q] or [1, n2, P, Q]
    return q[..., None, None] if side == 0 else q[..., None, None, :, :]


def zero(like: Tensor) -> Tensor:
    """Return a Θ that is 0 everywhere, as a number without axes, which operations can skip."""
    return torch.zeros((), dtype=like.dtype, device=like.device)
