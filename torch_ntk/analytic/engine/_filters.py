"""Sums over the taps of a filter and averages over positions, at one position or at pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._axis import Taps
from .._ops import Affine, Pool


def at_positions(a: Tensor, affine: Affine) -> Tensor:
    """The mean over the taps of `a` `[..., P, Q]`, where both images read the same position."""
    if affine.rows.trivial and affine.columns.trivial:
        return a
    a = _along(_along(a, a.ndim - 2, affine.rows), a.ndim - 1, affine.columns)
    return a / (len(affine.rows.sources) * len(affine.columns.sources))


def at_pairs(a: Tensor, affine: Affine) -> Tensor:
    """The mean over the taps of `a` `[..., P, Q, P', Q']`: position and position move together."""
    if affine.rows.trivial and affine.columns.trivial:
        return a
    a = _along_both(a, a.ndim - 4, a.ndim - 2, affine.rows)
    a = _along_both(a, a.ndim - 3, a.ndim - 1, affine.columns)
    return a / (len(affine.rows.sources) * len(affine.columns.sources))


def _along(a: Tensor, dim: int, taps: Taps) -> Tensor:
    if taps.trivial:
        return a
    shape = list(a.shape)
    shape[dim] = taps.size_out
    out = torch.zeros(shape, dtype=a.dtype, device=a.device)
    for runs in taps.runs:
        for run in runs:
            _part(out, {dim: run.out}).add_(_part(a, {dim: run.source}))
    return out


def _along_both(a: Tensor, dim1: int, dim2: int, taps: Taps) -> Tensor:
    if taps.trivial:
        return a
    shape = list(a.shape)
    shape[dim1] = shape[dim2] = taps.size_out
    out = torch.zeros(shape, dtype=a.dtype, device=a.device)
    for runs in taps.runs:
        for one in runs:
            for two in runs:
                target = _part(out, {dim1: one.out, dim2: two.out})
                target.add_(_part(a, {dim1: one.source, dim2: two.source}))
    return out


def _part(a: Tensor, slices: dict[int, slice]) -> Tensor:
    return a[tuple(slices.get(d, slice(None)) for d in range(a.ndim))]


def pooled(a: Tensor, pool: Pool) -> Tensor:
    """`a` `[..., P, Q, P', Q']` averaged over positions of either image."""
    if pool.to_one_position:
        factor = math.prod(float(m[0, 0]) * m.shape[1] for m in (pool.rows, pool.columns))
        return a.mean(dim=(-4, -3, -2, -1), keepdim=True) * factor**2
    rows, columns = pool.rows.to(a), pool.columns.to(a)
    for dim, matrix in ((-4, rows), (-3, columns), (-2, rows), (-1, columns)):
        a = torch.movedim(torch.movedim(a, dim, -1) @ matrix.T, -1, dim)
    return a
