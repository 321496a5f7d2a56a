"""The variances of every value in every image, computed once and not per pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._ops import (
    Activation,
    Affine,
    Concatenation,
    Gained,
    Input,
    Normalization,
    Pool,
    Program,
    Scale,
    Step,
    Sum,
)
from .._plan import Plan
from ._filters import at_positions
from ._inputs import input_state
from ._state import State, at_equal_positions
from ._step import apply, deviation

Variances = tuple[Tensor | None, ...]
"""Per step `[N, P, Q]`, or None where nobody asks."""


def variances(program: Program, plan: Plan, side: int, images: slice) -> Variances:
    """`K(x, x)` at equal positions, for a range of the images of one side.

    After an average over positions they depend on the covariances within the image, which are
    carried along then: as much work as one pair for each image.
    """
    within = within_images(program, plan, side, images) if plan.variances_need_pairs else {}
    found: list[Tensor | None] = []
    for i, step in enumerate(program.steps):
        if not plan.variances[i]:
            found.append(None)
        elif i in within:
            found.append(within[i])
        else:
            inputs = [found[j] for j in step.inputs]
            known = [q for q in inputs if q is not None]
            found.append(_variance(step, known, _pick(step, side, images)))
    return tuple(found)


def _pick(step: Step, side: int, images: slice) -> Tensor | None:
    if not isinstance(step.operation, Input):
        return None
    x = step.operation.x1 if side == 0 else step.operation.x2
    assert x is not None
    return x[images]


def _variance(step: Step, inputs: Sequence[Tensor], x: Tensor | None) -> Tensor:
    operation = step.operation
    match operation:
        case Input():
            assert x is not None
            return x.square().mean(1)
        case Affine():
            return at_positions(inputs[0], operation) * operation.sigma_w**2 + operation.sigma_b**2
        case Activation():
            return operation.dual.diagonal(inputs[0])[0]
        case Gained():
            return inputs[0]
        case Scale():
            return inputs[0] * operation.factor**2
        case Sum():
            return torch.stack(list(inputs)).sum(0)
        case Concatenation():
            return torch.stack(
                [q * share for q, share in zip(inputs, operation.shares, strict=True)]
            ).sum(0)
        case Normalization():
            return inputs[0] / deviation(inputs[0], operation, False, 0) ** 2
        case Pool():  # of one position
            factor = float(operation.rows.sum()) * float(operation.columns.sum())
            return inputs[0] * factor**2
        case _:  # Flatten
            return inputs[0].mean(dim=(-2, -1), keepdim=True)


def within_images(program: Program, plan: Plan, side: int, images: slice) -> dict[int, Tensor]:
    """Variances by way of the covariances between all positions of each image."""
    states: dict[int, State] = {}
    found: dict[int, Tensor] = {}
    for i, step in enumerate(program.steps):
        if not plan.variances[i] and not plan.full[i]:
            continue
        if isinstance(step.operation, Input):
            x = _pick(step, side, images)
            assert x is not None
            s = input_state(x, x, distance=False, full=True, ntk=False, same=True)
        else:
            inputs = [states[j] for j in step.inputs]
            q = [_of_itself(found[j], states[j].full) for j in step.inputs]
            s = apply(step.operation, inputs, q)
            if isinstance(step.operation, Activation):
                s = exact_at_equal_positions(
                    s, step.operation.dual.diagonal(found[step.inputs[0]])[0]
                )
        if not plan.full[i]:
            s = s.equal_positions()
        states[i] = s
        k = at_equal_positions(s.first) if s.full else s.first
        found[i] = k[:, 0]
        for j in step.inputs:
            if plan.last_use[j] == i:
                states.pop(j, None)
    return found


def _of_itself(q: Tensor, full: bool) -> tuple[Tensor, Tensor]:
    """Variances `[N, P, Q]` shaped for pairs of an image with itself, `[N, 1, ...]`."""
    one = q[:, None]
    return (one[..., None, None], one[:, :, None, None]) if full else (one, one)


def exact_at_equal_positions(s: State, q: Tensor) -> State:
    """`s` `[N, 1, P, Q, P', Q']` of images with themselves, with `q` `[N, P, Q]` at p = p'."""
    first = s.first.clone()
    if s.full:
        at_equal_positions(first)[:, 0] = q
    else:
        first[:, 0] = q
    return State(first, s.ntk, s.distance, s.full)
