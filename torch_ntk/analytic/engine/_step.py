"""One operation on the covariances of a block of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch

import torch
from torch import Tensor

from .._ops import (
    Activation,
    Affine,
    Concatenation,
    Flatten,
    Gained,
    Normalization,
    Operation,
    Pool,
    Scale,
    Sum,
)
from ._filters import at_pairs, at_positions, pooled
from ._state import State, zero

Variances = tuple[Tensor, Tensor]
"""Of the value in the images of x1 and of x2, shaped to go with the block."""


@singledispatch
def apply(operation: Operation, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    """The value of `operation`.

    Args:
        operation: What to do.
        inputs: The values that it takes.
        q: The variances of each, where they are known; they always are where values are held
            as distances and where an operation is not linear.
    """
    raise AssertionError(f"no rule for {operation}")


@apply.register
def _(operation: Affine, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    (s,) = inputs
    mean = at_pairs if s.full else at_positions
    weights, shift = operation.sigma_w**2, operation.sigma_b**2
    first = mean(s.first, operation) * weights
    if not s.distance:
        first = first + shift if shift else first
    ntk = s.ntk
    if ntk is not None:
        seen = ntk + _covariance(s, q[0]) if operation.weight_trained else ntk
        ntk = mean(seen, operation) * weights if seen.ndim else seen
        if operation.bias_trained and shift:
            ntk = ntk + shift if ntk.ndim else torch.full_like(first, shift)
    return State(first, ntk, s.distance, s.full)


@apply.register
def _(operation: Activation, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    (s,) = inputs
    assert q[0] is not None
    if s.distance:
        first, slope = operation.dual.pair_from_distance(s.first, *q[0])
    else:
        first, slope = operation.dual.pair(s.first, *q[0])
    ntk = s.ntk
    if ntk is not None and ntk.ndim:
        ntk = ntk * slope
    return State(first, ntk, s.distance, s.full)


@apply.register
def _(operation: Gained, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    s, by_gain = inputs
    ntk = None if s.ntk is None else s.ntk + _covariance(by_gain, q[1])
    return State(s.first, ntk, s.distance, s.full)


@apply.register
def _(operation: Scale, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    return _each(inputs[0], lambda a: a * operation.factor**2)


@apply.register
def _(operation: Sum, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    return _combined(inputs, [1.0] * len(inputs))


@apply.register
def _(operation: Concatenation, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    return _combined(inputs, operation.shares)


@apply.register
def _(operation: Pool, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    (s,) = inputs
    assert s.full
    assert not s.distance
    return _each(s, lambda a: pooled(a, operation) if a.ndim else a)


@apply.register
def _(operation: Flatten, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    s = inputs[0].equal_positions()
    return _each(s, lambda a: a.mean(dim=(-2, -1), keepdim=True) if a.ndim else a)


@apply.register
def _(operation: Normalization, inputs: Sequence[State], q: Sequence[Variances | None]) -> State:
    (s,) = inputs
    assert q[0] is not None
    q1, q2 = q[0]
    s1, s2 = (deviation(v, operation, s.full, side) for side, v in enumerate(q[0]))
    product = s1 * s2
    if s.distance:
        # The distance of the normalized features, again without subtracting equal numbers.
        a1, a2 = torch.sqrt(q1), torch.sqrt(q2)
        first = (a1 / s1 - a2 / s2) ** 2 + (s.first - (a1 - a2) ** 2) / product
        covariance = (q1 / s1**2 + q2 / s2**2 - first) / 2
    else:
        first = covariance = s.first / product
    ntk = s.ntk
    if ntk is not None:
        ntk = ntk / product if ntk.ndim else ntk
        ntk = ntk + covariance if operation.gain_trained else ntk
        if operation.shift_trained:
            ntk = ntk + 1 if ntk.ndim else torch.ones_like(first)
    return State(first, ntk, s.distance, s.full)


def deviation(q: Tensor, operation: Normalization, full: bool, side: int) -> Tensor:
    """The standard deviation over all features of each image, shaped like `q` with one position."""
    if not full:
        axes: tuple[int, int] = (-2, -1)
    else:
        axes = (-4, -3) if side == 0 else (-2, -1)
    return torch.sqrt(q.mean(dim=axes, keepdim=True) + operation.eps)


def _covariance(s: State, q: Variances | None) -> Tensor:
    return s.covariance(*(q if q is not None else (None, None)))


def _each(s: State, function: Callable[[Tensor], Tensor]) -> State:
    ntk = None if s.ntk is None else function(s.ntk)
    return State(function(s.first), ntk, s.distance, s.full)


def _combined(inputs: Sequence[State], shares: Sequence[float]) -> State:
    """The sum of the states with weights; all pairs of positions only if all have them."""
    full = all(s.full for s in inputs)
    states = list(inputs) if full else [s.equal_positions() for s in inputs]
    first = _weighted([s.first for s in states], shares)
    ntks = [s.ntk for s in states if s.ntk is not None]
    ntk = _weighted(ntks, shares) if ntks else None
    if ntk is not None and ntk.ndim == 0:
        ntk = zero(first)
    return State(first, ntk, states[0].distance, full)


def _weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = tensors[0] * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + tensor * share
    return total
