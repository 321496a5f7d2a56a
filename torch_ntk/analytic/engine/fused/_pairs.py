"""Pairs of images as tensors: the inputs of a region, and the states that it returns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...operations import Input, State
from .._task import Block, Images, Task
from ._assembly import Assembly, Term
from ._packed import Packed, Value
from ._region import Region

Length = Callable[[int], tuple[int, int]]
"""From a step to the number of odd and of even coefficients of its series."""


class Pairs:
    """The pairs of images of a block, for one region.

    Args:
        task: The computation.
        region: A part of its program.
        like: A tensor of the type and on the device of the computation.
    """

    def __init__(self, task: Task, region: Region, like: Tensor) -> None:
        self._task, self._region, self._like = task, region, like

    def chosen(self, block: Block) -> Tensor:
        """The pairs to be computed `[n, 3]`: rows, columns, and whether both are the same image.

        Of a symmetric matrix, these are the pairs on and above its diagonal.
        """
        if block.paired:
            each = torch.arange(len(block.rows))
            return torch.stack([each, each, torch.ones_like(each)], 1)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in block.shape), indexing="ij")
        wanted = torch.ones(block.shape, dtype=torch.bool)
        if self._task.symmetric:
            wanted = rows + block.rows.start <= columns + block.columns.start
        rows, columns = rows[wanted], columns[wanted]
        same = torch.zeros_like(rows)
        if not self._task.plan.distance:
            same += self._task.identical(rows + block.rows.start, columns + block.columns.start)
        return torch.stack([rows, columns, same], 1)

    def terms(
        self, images: Images, side: int, terms: Sequence[Term], length: Length
    ) -> tuple[Tensor, list[int]]:
        """Return the terms of some images, one after the other, and where each begins."""
        parts = [v.flatten(1) for v in self.each_term(images, side, terms, length)]
        starts = itertools.accumulate((part.shape[1] for part in parts), initial=0)
        whole = torch.cat(parts, 1) if parts else self._like.new_zeros(len(images), 1)
        return whole.detach().contiguous(), list(starts)[:-1]

    def each_term(
        self, images: Images, side: int, terms: Sequence[Term], length: Length
    ) -> Iterator[Tensor]:
        """Yield the terms of some images, `[n, P, Q]` each."""
        values: dict[tuple[int, bool], tuple[Tensor, ...]] = {}
        for t in terms:
            key = t.step, t.exact
            if key not in values:
                values[key] = self.values(images, side, t.step, t.exact, length(t.step))
            yield values[key][t.index]

    def values(
        self, images: Images, side: int, step: int, exact: bool, length: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Return all terms of a step in some images, `[n, P, Q]` each.

        Args:
            images: The images.
            side: The side to which they belong: 0 for x1, 1 for x2.
            step: The number of the step.
            exact: Whether the terms are those of the formula for equal values.
            length: The numbers of odd and of even coefficients of the series; see `Series`.
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
        """Return how many coefficients each series needs for the pairs of a block, by step."""
        found = {}
        for i, fused in self._region.fused.items():
            if (series := fused.formula.series) is not None:
                (j,) = self._task.program.steps[i].inputs
                sides = [images.variances[j] for images in (block.rows, block.columns)]
                each = [series.lengths(q) for q in sides if q is not None]
                found[i] = max(n for n, _ in each), max(n for _, n in each)
        return found

    def packed(
        self, states: Mapping[int, Value], pairs: Tensor, block: Block, assembly: Assembly
    ) -> Tensor:
        """Return the inputs of a region for pairs from `chosen` side by side, `[n, numbers]`."""
        rows, columns = _places(block, pairs)
        parts = []
        for step, *_ in assembly.sources:
            s = states[step]
            if isinstance(s, Packed):
                parts.append(s.values)
                continue
            extent = assembly.extent(step)
            for x in (s.nngp, s.ntk):
                if x is None or x.ndim == 0:
                    parts.append(self._like.new_zeros(len(pairs), extent.entries))
                else:
                    parts.append(extent.pack(x[rows, columns], s.full))
        if not parts:
            return self._like.new_zeros(len(pairs), 1)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).contiguous()

    def sums(self, block: Block, pairs: Tensor, sums: Tensor) -> dict[int, Value]:
        """Return the states of sums over positions, from K and Θ of `pairs`, `[n, sums, 2]`."""
        rows, columns = _places(block, pairs)
        made: dict[int, Value] = {}
        for n, (step, factor) in enumerate(self._region.collectors.items()):
            parts = []
            for of in (0, 1):
                part = self._like.new_zeros(*block.shape, 1, 1)
                part[rows, columns, 0, 0] = (sums[:, n, of] * factor).to(part)
                parts.append(part)
            made[step] = self._state(parts[0], parts[1], False)
        return made

    def states(
        self, block: Block, pairs: Tensor, outputs: Tensor, assembly: Assembly, *, packed: bool
    ) -> dict[int, Value]:
        """Return the states of all other values, whose entries for `pairs` are `[n, numbers]`.

        With `packed`, values that only other regions take are returned as `Packed`.
        """
        rows, columns = _places(block, pairs)
        made: dict[int, Value] = {}
        for step, _, start in (*assembly.stored, *assembly.averaged):
            extent = assembly.extent(step)
            found = outputs[:, start : start + 2 * extent.entries]
            if packed and step in self._region.between:
                made[step] = Packed(found, extent)
                continue
            parts = []
            full = self._task.plan.full[step]
            for of in torch.split(found, extent.entries, 1):
                of = extent.unpack(of, full)
                part = self._like.new_zeros(*block.shape, *of.shape[1:])
                part[rows, columns] = of
                parts.append(part)
            made[step] = self._state(parts[0], parts[1], full)
        return made

    def _state(self, k: Tensor, t: Tensor, full: bool) -> State:
        return State(k, t if self._task.ntk else None, self._task.plan.distance, full)


def _places(block: Block, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of a block in which pairs are."""
    rows, columns = pairs[:, 0], pairs[:, 1]
    return rows, torch.zeros_like(columns) if block.paired else columns
