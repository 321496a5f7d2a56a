"""A program on one block of pairs of images, step by step, in plain torch operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._program import Program
from ..operations import IdenticalImages, Input, State
from ._task import Block, Task


def evaluate(task: Task, block: Block, known: Mapping[int, State]) -> tuple[Tensor, Tensor | None]:
    """K and Θ of the network's outputs, `[n1, n2]`.

    Args:
        task: What to evaluate.
        block: For which pairs of images.
        known: Values computed elsewhere, per step; the steps before them are left out if nothing
            else takes them.
    """
    states: dict[int, State] = dict(known)
    steps, plan = task.program.steps, task.plan
    wanted = _wanted(task.program, known)
    places = _identical(task, block)
    for i, step in enumerate(steps):
        if i in states or i not in wanted:
            continue
        if isinstance(step.operation, Input):
            states[i] = _known_features(task, block, i, step.operation)
            continue
        inputs = [states[j] for j in step.inputs]
        variances = [block.variances(j, states[j].full) for j in step.inputs]
        s = step.operation.state(inputs, variances)
        if places is not None:
            rows, columns = places
            found = [block.rows.variances[j] for j in step.inputs]
            of_images = [None if q is None else q[rows] for q in found]
            identical = IdenticalImages(rows, columns, of_images)
            s = step.operation.with_identical(s, inputs, identical)
        states[i] = s if plan.full[i] else s.same_positions()
        for j in step.inputs:
            if plan.last_use[j] == i:
                states.pop(j, None)  # an operation may take one value twice
    last = len(steps) - 1
    k = states[last].covariance(block.variances(last, False))[..., 0, 0]
    theta = states[last].ntk
    if theta is None:
        return k, None
    return k, theta[..., 0, 0] if theta.ndim else theta.expand(k.shape)


def _known_features(task: Task, block: Block, i: int, features: Input) -> State:
    rows, columns = block.rows.slice, block.columns.slice
    if not task.plan.distance:
        return features.pairs(rows, columns, task.plan.full[i], task.ntk)
    variances = block.variances(i, False)
    assert variances is not None
    return features.distances(rows, columns, variances, task.ntk)


def _wanted(program: Program, known: Mapping[int, State]) -> set[int]:
    """Steps whose value is taken by the last one, not counting what is known."""
    wanted = {len(program.steps) - 1}
    for i in reversed(range(len(program.steps))):
        if i in wanted and i not in known:
            wanted.update(program.steps[i].inputs)
    return wanted


def _identical(task: Task, block: Block) -> tuple[Tensor, Tensor] | None:
    """The places of identical images in a block; None where they need no correction.

    Distances are exactly 0 there without one.
    """
    if task.plan.distance:
        return None
    first, second = (torch.arange(i.start, i.stop) for i in (block.rows, block.columns))
    rows, columns = task.identical(first[:, None], second[None]).nonzero(as_tuple=True)
    if not len(rows):
        return None
    device = task.program.known[0].x1.device
    return rows.to(device), columns.to(device)
