"""Variances after averages over positions, from pairs of an image with itself in regions."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...memory import ranges
from .._program import Program
from ..operations import Input, at_same_positions
from ._evaluate import Unit, known_features, single_step, taken
from ._task import Block, Images, Task
from ._variances import images, images_of_pairs
from .fused import Packed, Partition, RegionEvaluation, Value
from .triton import KernelEvaluation

# Positions from which on loops, one image at a time, are faster than tensor operations on several.
_POSITIONS = 256


class WithinImages:
    """The images of one side with the variances of every value.

    Args:
        task: What is evaluated.
        parts: Its regions and single steps.
        side: 0 or 1.
    """

    def __init__(self, task: Task, parts: Partition, side: int) -> None:
        self._task, self._side = task, side
        self._units: list[Unit] = []
        most = max(math.prod(step.positions) for step in task.program.steps)
        wanted = task.plan.variances_need_pairs and most >= _POSITIONS
        if not wanted or not any(r.full for r in parts.regions):
            return
        steps = tuple(
            replace(s, operation=replace(s.operation, x1=s.operation.both[side], x2=None))
            if isinstance(s.operation, Input)
            else s
            for s in task.program.steps
        )
        self._own = Task(Program(steps), task.plan, False, True)
        like = self._own.program.known[0].x1
        self._at_once = images_of_pairs(like, parts.largest(task.program, task.plan))
        of_region = KernelEvaluation if parts.kernels else RegionEvaluation
        units = parts.units
        self._units = [u if isinstance(u, int) else of_region(self._own, u, like) for u in units]

    def __call__(self, start: int, stop: int) -> Images:
        """The images from number `start` to `stop`."""
        if not self._units:
            return images(self._task, self._side, start, stop)
        each = [self._of_some(a, b) for a, b in ranges(start, stop, self._at_once)]
        joined = (None if of[0] is None else torch.cat(of) for of in zip(*each, strict=True))
        return Images(start, stop, tuple(joined))

    def _of_some(self, start: int, stop: int) -> list[Tensor | None]:
        """Unit by unit, as what comes after an average needs the variances of its result."""
        steps, plan = self._own.program.steps, self._own.plan
        found: list[Tensor | None] = [None] * len(steps)
        states: dict[int, Value] = {}
        for i, step in enumerate(steps):
            if isinstance(step.operation, Input):
                found[i] = step.operation.variance(0, slice(start, stop))
        for unit in self._units:
            if not isinstance(unit, int):
                for i in unit.region.fused:
                    self._add(i, found)
            some = Images(start, stop, tuple(found))
            block = Block(some, some, paired=True)
            for j in taken(self._own, unit):
                operation = steps[j].operation
                if isinstance(operation, Input) and j not in states:
                    states[j] = known_features(self._own, block, j, operation)
            made: dict[int, Value]
            if isinstance(unit, int):
                rows = torch.arange(stop - start, device=self._own.program.known[0].x1.device)
                places = rows, torch.zeros_like(rows)
                made = {unit: single_step(self._own, block, unit, states, places)}
            else:
                made = unit(block, states)
            states.update(made)
            for i, s in made.items():
                if found[i] is None:
                    found[i] = _same_positions(s).contiguous()
        return [q if wanted else None for q, wanted in zip(found, plan.variances, strict=True)]

    def _add(self, i: int, found: list[Tensor | None]) -> None:
        """The variances of a step that does not mix positions, if those of its inputs are known."""
        step = self._own.program.steps[i]
        assert not isinstance(step.operation, Input)
        inputs = [found[j] for j in step.inputs]
        if all(q is not None for q in inputs):
            found[i] = step.operation.variance([q for q in inputs if q is not None])


def _same_positions(s: Value) -> Tensor:
    """The variances `[n, P, Q]` of a value for pairs of an image with itself."""
    if isinstance(s, Packed):
        return s.same_positions
    return (at_same_positions(s.nngp) if s.full else s.nngp)[:, 0]
