"""A program on one block of pairs of images: its regions in fused loops, other steps one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operations import IdenticalImages, Input, State, Variances
from ._task import Block, Task
from .fused import Partition, RegionEvaluation, Value
from .triton import KernelEvaluation

Unit = RegionEvaluation | KernelEvaluation | int
"""A region with its loops or its kernel, or the number of a step."""


def evaluations(task: Task, parts: Partition, like: Tensor) -> list[Unit]:
    """The units of a partition, each region with its loops or kernel for the type of `like`."""
    of_region = KernelEvaluation if parts.kernels else RegionEvaluation
    return [u if isinstance(u, int) else of_region(task, u, like) for u in parts.units]


def evaluate(task: Task, block: Block, units: Sequence[Unit]) -> tuple[Tensor, Tensor | None]:
    """K and Θ of the network's outputs, `[n1, n2]`.

    Args:
        task: The computation.
        block: The pairs of images.
        units: The program in the order of its evaluation.
    """
    states: dict[int, Value] = {}
    last_use = {j: n for n, unit in enumerate(units) for j in _taken(task, unit)}
    places = _identical(task, block)
    for n, unit in enumerate(units):
        states.update(evaluate_unit(task, block, unit, states, places))
        for j in _taken(task, unit):
            if last_use[j] == n:
                states.pop(j, None)  # an operation may take one value twice
    last = len(task.program.steps) - 1
    if last not in states:  # known features alone
        operation = task.program.steps[last].operation
        assert isinstance(operation, Input)
        states[last] = _known_features(task, block, last, operation)
    found = states[last]
    assert isinstance(found, State)
    k = _covariance(found, block.variances(last, False))[..., 0, 0]
    theta = found.ntk
    if theta is None:
        return k, None
    return k, theta[..., 0, 0] if theta.ndim else theta.expand(k.shape)


def _covariance(s: State, variances: Variances | None) -> Tensor:
    """K of a value that nothing else needs; where it is 0 in one image, without rounding."""
    if not s.distance or variances is None or torch.is_grad_enabled():
        return s.covariance(variances)
    q1, q2 = variances
    k = s.nngp.neg().add_(q1).add_(q2).mul_(0.5)
    nothing = q1 == 0, q2 == 0
    if bool(nothing[0].any() or nothing[1].any()):
        k.masked_fill_(nothing[0] | nothing[1], 0.0)
    return k


def _taken(task: Task, unit: Unit) -> tuple[int, ...]:
    """The steps whose states a unit takes."""
    if isinstance(unit, int):
        return task.program.steps[unit].inputs
    return unit.region.inputs


def evaluate_unit(
    task: Task,
    block: Block,
    unit: Unit,
    states: dict[int, Value],
    places: tuple[Tensor, Tensor] | None,
) -> dict[int, Value]:
    """The values that a unit computes.

    Args:
        task: The computation.
        block: The pairs of images.
        unit: The region or step.
        states: The values of earlier units. Known features that it takes are added.
        places: The rows and columns of pairs of identical images in the block.
    """
    for j in _taken(task, unit):
        operation = task.program.steps[j].operation
        if isinstance(operation, Input) and j not in states:
            states[j] = _known_features(task, block, j, operation)
    if isinstance(unit, int):
        return {unit: _single_step(task, block, unit, states, places)}
    return unit(block, states)


def _single_step(
    task: Task,
    block: Block,
    i: int,
    states: dict[int, Value],
    places: tuple[Tensor, Tensor] | None,
) -> State:
    """A step by tensor operations."""
    step = task.program.steps[i]
    assert not isinstance(step.operation, Input)
    inputs = [s for j in step.inputs if isinstance(s := states[j], State)]
    variances = [block.variances(j, s.full) for j, s in zip(step.inputs, inputs, strict=True)]
    s = step.operation.state(inputs, variances)
    if places is not None:
        rows, columns = places
        found = [block.rows.variances[j] for j in step.inputs]
        of_images = [None if q is None else q[rows] for q in found]
        identical = IdenticalImages(rows, columns, of_images)
        s = step.operation.with_identical(s, inputs, identical)
    return s if task.plan.full[i] else s.same_positions()


def _known_features(task: Task, block: Block, i: int, features: Input) -> State:
    """The covariances of known features, in the form in which the program has them."""
    rows, columns = block.rows.slice, block.columns.slice
    if block.paired:
        s = features.within(0, rows)
        return s if task.plan.full[i] else s.same_positions()
    if not task.plan.distance:
        return features.pairs(rows, columns, task.plan.full[i], task.ntk)
    variances = block.variances(i, False)
    assert variances is not None
    return features.distances(rows, columns, variances, task.ntk)


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
