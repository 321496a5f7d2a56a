"""The variances of every value in every image, computed once and not per pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...memory import budget, ranges
from ..operations import IdenticalImages, Input, State
from ._task import Images, StepVariances, Task, with_itself

# Entries of an array of covariances within images, and how many such arrays are there at once: of
# the values that are taken, of the one that is made, and what making it needs in between.
_MOST_ENTRIES = 1 << 21
_ALIVE = 16


def images(task: Task, side: int, start: int, stop: int) -> Images:
    """A range of the images of one side with `K(x, x)` of every value at every position.

    After an average over positions that depends on the covariances within the image, which are
    computed along with it then: as much work as one pair for each image.
    """
    if not task.plan.variances_need_pairs:
        return Images(start, stop, _from_variances(task, side, slice(start, stop)))
    most = max(math.prod(step.positions) for step in task.program.steps) ** 2
    at_once = images_of_pairs(task.program.known[0].both[side], most)
    parts = (_from_pairs(task, side, slice(a, b)) for a, b in ranges(start, stop, at_once))
    return Images.joined(start, stop, parts)


def images_of_pairs(like: Tensor, entries: int) -> int:
    """Return how many images may have values as pairs of an image with itself in memory at once.

    Args:
        like: A tensor of the type and on the device of the computation.
        entries: Of the largest value for one image.
    """
    available = budget(like.device) // (_ALIVE * like.element_size())
    return max(1, min(_MOST_ENTRIES, available) // entries)


def _from_variances(task: Task, side: int, which: slice) -> StepVariances:
    found: list[Tensor | None] = []
    for step, needed in zip(task.program.steps, task.plan.variances, strict=True):
        if not needed:
            found.append(None)
        elif isinstance(step.operation, Input):
            found.append(step.operation.variance(side, which))
        else:
            inputs = [q for j in step.inputs if (q := found[j]) is not None]
            found.append(step.operation.variance(inputs))
    return tuple(found)


def _from_pairs(task: Task, side: int, which: slice) -> StepVariances:
    """Compute them by the covariances between all positions, `[n, 1, P, Q, P', Q']`."""
    plan = task.plan
    states: dict[int, State] = {}
    found: list[Tensor | None] = []
    for i, step in enumerate(task.program.steps):
        if not plan.variances[i] and not plan.full[i]:
            found.append(None)
            continue
        if isinstance(step.operation, Input):
            s = step.operation.within(side, which)
        else:
            inputs = [states[j] for j in step.inputs]
            variances = [found[j] for j in step.inputs]
            spread = [
                None if q is None else with_itself(q, states[j].full)
                for j, q in zip(step.inputs, variances, strict=True)
            ]
            s = step.operation.state(inputs, spread)
            # Each of these pairs is an image with itself.
            n = torch.arange(len(s.nngp), device=s.nngp.device)
            identical = IdenticalImages(n, torch.zeros_like(n), variances)
            s = step.operation.with_identical(s, inputs, identical)
        states[i] = s if plan.full[i] else s.same_positions()
        # A copy: a view would keep the covariances between all positions.
        found.append(states[i].same_positions().nngp[:, 0].contiguous())
        for j in step.inputs:
            if plan.last_use[j] == i:
                states.pop(j, None)
    return tuple(q if needed else None for q, needed in zip(found, plan.variances, strict=True))
