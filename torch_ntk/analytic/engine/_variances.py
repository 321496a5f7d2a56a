"""The variances of every value in every image, computed once and not per pair."""

from __future__ import annotations

import torch
from torch import Tensor

from ...memory import budget, ranges
from ..operations import IdenticalImages, Input, State, Variances, at_same_positions
from ._task import Images, StepVariances, Task

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
    parts = [
        _from_pairs(task, side, slice(a, b)) for a, b in ranges(start, stop, _at_once(task, side))
    ]
    joined = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
    return Images(start, stop, tuple(joined))


def _at_once(task: Task, side: int) -> int:
    most = max(step.positions[0] * step.positions[1] for step in task.program.steps) ** 2
    return images_of_pairs(task.program.known[0].both[side], most)


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
                None if q is None else _of_itself(q, states[j].full)
                for j, q in zip(step.inputs, variances, strict=True)
            ]
            s = step.operation.state(inputs, spread)
            # Each of these pairs is an image with itself.
            n = torch.arange(len(s.nngp), device=s.nngp.device)
            identical = IdenticalImages(n, torch.zeros_like(n), variances)
            s = step.operation.with_identical(s, inputs, identical)
        states[i] = s if plan.full[i] else s.same_positions()
        k = states[i].nngp
        # A copy: a view would keep the covariances between all positions.
        found.append((at_same_positions(k) if states[i].full else k)[:, 0].contiguous())
        for j in step.inputs:
            if plan.last_use[j] == i:
                states.pop(j, None)
    return tuple(q if needed else None for q, needed in zip(found, plan.variances, strict=True))


def _of_itself(q: Tensor, full: bool) -> Variances:
    """Variances `[n, P, Q]` shaped for pairs of an image with itself, `[n, 1, ...]`."""
    one = q[:, None]
    return (one[..., None, None], one[:, :, None, None]) if full else (one, one)
