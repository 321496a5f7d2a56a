"""Variances after averages over positions, from pairs of an image with itself in regions."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...memory import ranges
from .._program import Program
from ..operations import Input
from ._evaluate import Unit, evaluate_unit, evaluations
from ._task import Block, Images, Task
from ._variances import images, images_of_pairs
from .fused import Packed, Partition, Value

# Positions from which on loops, one image at a time, are faster than tensor operations on several.
_POSITIONS = 256


class WithinImages:
    """The images of one side with the variances of every value.

    Args:
        task: The computation.
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
        self._units = evaluations(self._own, parts, like)

    def __call__(self, start: int, stop: int) -> Images:
        """The images from number `start` to `stop`."""
        if not self._units:
            return images(self._task, self._side, start, stop)
        parts = (self._of_some(a, b) for a, b in ranges(start, stop, self._at_once))
        return Images.joined(start, stop, parts)

    def _of_some(self, start: int, stop: int) -> list[Tensor | None]:
        """Unit by unit, as what comes after an average needs the variances of its result."""
        steps, plan = self._own.program.steps, self._own.plan
        found: list[Tensor | None] = [None] * len(steps)
        states: dict[int, Value] = {}
        # Each of these pairs is an image with itself.
        rows = torch.arange(stop - start, device=self._own.program.known[0].x1.device)
        for i, step in enumerate(steps):
            if isinstance(step.operation, Input):
                found[i] = step.operation.variance(0, slice(start, stop))
        for unit in self._units:
            if not isinstance(unit, int):
                for i in unit.region.fused:
                    self._add(i, found)
            some = Images(start, stop, tuple(found))
            block = Block(some, some, paired=True)
            made = evaluate_unit(self._own, block, unit, states, (rows, torch.zeros_like(rows)))
            states.update(made)
            for i, s in made.items():
                if found[i] is None:
                    # Of a state `[n, 1, P, Q]`, whose one column is each image with itself.
                    k = s.same_positions if isinstance(s, Packed) else s.same_positions().nngp[:, 0]
                    found[i] = k.contiguous()
        return [q if wanted else None for q, wanted in zip(found, plan.variances, strict=True)]

    def _add(self, i: int, found: list[Tensor | None]) -> None:
        """The variances of a step that does not mix positions, if those of its inputs are known."""
        step = self._own.program.steps[i]
        assert not isinstance(step.operation, Input)
        inputs = [found[j] for j in step.inputs]
        if all(q is not None for q in inputs):
            found[i] = step.operation.variance([q for q in inputs if q is not None])
