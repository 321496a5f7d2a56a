"""Pairs of images as tensors: what a region takes of them, and states of what it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...operations import Input, State
from .._task import Block, Images, Task
from ._assembly import Term
from ._regions import Region
from ._source import Slot

Length = Callable[[int], tuple[int, int]]
"""Of a step, how many coefficients its series has."""


def _nothing(_: int) -> tuple[int, int]:
    return 0, 0


class Pairs:
    """The pairs of blocks, for one region.

    Args:
        task: What is evaluated.
        region: A part of its program.
        like: A tensor of the type and on the device of the computation.
    """

    def __init__(self, task: Task, region: Region, like: Tensor) -> None:
        self._task, self._region, self._like = task, region, like

    def chosen(self, block: Block) -> Tensor:
        """The pairs to be computed `[n, 3]`: rows, columns, and whether both are the same image.

        Of a symmetric matrix, these are the pairs on and above its diagonal.
        """
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in block.shape), indexing="ij")
        wanted = torch.ones(block.shape, dtype=torch.bool)
        if self._task.symmetric:
            wanted = rows + block.rows.start <= columns + block.columns.start
        rows, columns = rows[wanted], columns[wanted]
        same = torch.zeros_like(rows)
        if self._region.full:
            same += self._task.identical(rows + block.rows.start, columns + block.columns.start)
        return torch.stack([rows, columns, same], 1)

    def terms(
        self, images: Images, side: int, terms: Sequence[Term], length: Length = _nothing
    ) -> tuple[Tensor, list[int]]:
        """The terms of some images, one after the other, and where each begins."""
        parts: list[Tensor] = []
        starts, size = [], 0
        values: dict[tuple[int, bool], tuple[Tensor, ...]] = {}
        for t in terms:
            key = t.step, t.exact
            if key not in values:
                values[key] = self.values(images, side, t.step, t.exact, length(t.step))
            part = values[key][t.index].flatten(1)
            parts.append(part)
            starts.append(size)
            size += part.shape[1]
        n = len(images)
        whole = torch.cat(parts, 1) if parts else self._like.new_zeros(n, 1)
        return whole.detach().contiguous(), starts

    def values(
        self, images: Images, side: int, step: int, exact: bool, length: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """All terms of a step in some images, `[n, P, Q]` each.

        Args:
            images: Which images.
            side: Of which side.
            step: The step.
            exact: Whether of its formula for equal values.
            length: How many coefficients its series has; see `Series`.
        """
        operation = self._task.program.steps[step].operation
        if isinstance(operation, Input):
            return operation.both[side][images.slice].unbind(1)
        fused = self._region.fused[step]
        formula = fused.exact if exact else fused.formula
        assert formula is not None
        variances = [images.variances[j] for j in self._task.program.steps[step].inputs]
        p, q = self._task.program.steps[step].positions
        found = formula.terms(variances)  # type: ignore[arg-type]
        if formula.series is not None:
            (variance,) = variances
            assert variance is not None
            found = (*found, *formula.series.coefficients(variance, length).unbind(0))
        return tuple(v.to(self._like.dtype).expand(len(images), p, q) for v in found)

    def lengths(self, block: Block) -> dict[int, tuple[int, int]]:
        """How many coefficients the series of every step need for the pairs of a block."""
        found = {}
        for i, fused in self._region.fused.items():
            if (series := fused.formula.series) is not None:
                (j,) = self._task.program.steps[i].inputs
                sides = [images.variances[j] for images in (block.rows, block.columns)]
                each = [series.lengths(q) for q in sides if q is not None]
                found[i] = max(n for n, _ in each), max(n for _, n in each)
        return found

    def states(
        self,
        block: Block,
        pairs: Tensor,
        sums: Tensor,
        outputs: Tensor,
        stored: Sequence[tuple[int, Slot, int]],
    ) -> dict[int, State]:
        """What a region gives.

        Args:
            block: For which pairs.
            pairs: Those that were computed.
            sums: Of them over positions, of K and Θ `[n, sums, 2]`.
            outputs: All other values `[n, ...]`.
            stored: Per value its step, its slot, and where it begins in `outputs`.
        """
        rows, columns = pairs[:, 0], pairs[:, 1]
        made = {}
        for n, (step, factor) in enumerate(self._region.collectors.items()):
            parts = []
            for of in (0, 1):
                part = self._like.new_zeros(*block.shape, 1, 1)
                part[rows, columns, 0, 0] = (sums[:, n, of] * factor).to(part)
                parts.append(part)
            made[step] = self._state(parts[0], parts[1], False)
        for step, slot, start in stored:
            p, q = slot.place.positions
            size = (p, q, p, q) if self._region.full else (p, q)
            count = math.prod(size)
            parts = []
            for of in (0, 1):
                part = self._like.new_zeros(*block.shape, *size)
                found = outputs[:, start + of * count : start + (of + 1) * count]
                part[rows, columns] = found.reshape(-1, *size)
                parts.append(part)
            made[step] = self._state(parts[0], parts[1], self._region.full)
        return made

    def _state(self, k: Tensor, t: Tensor, full: bool) -> State:
        return State(k, t if self._task.ntk else None, self._task.plan.distance, full)
