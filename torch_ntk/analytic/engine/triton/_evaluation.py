"""A region for a block of pairs of images, by its kernel."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ....activations import Form
from ...operations import Input
from .._task import Block, Task
from ..fused import Assembly, Extent, Pairs, Place, Region, Slot, Value, Windows
from ._averages import averaged
from ._module import load
from ._source import source

# Entries that go through a pass at once, threads of an instance in 32s, and instances for each
# multiprocessor, whose values stay in its cache: 30 KB each for 32×32 images in float32.
_BLOCK, _WARPS, _INSTANCES = 512, 4, 4
# Entries after the last value, which taps of masked entries may point to.
_SPARE = 128


def _shape(place: Place) -> list[int]:
    """The integers of a value's layout, with which rows of tables begin."""
    (p, q), (s1, s2) = place.positions, place.scale
    return [p, s1, q, s2, place.width]


def _outside(slot: Slot, start: int, extent: Extent) -> list[int]:
    """Where a value is inside and outside of the kernel."""
    return [*_shape(slot.place), slot.origin, slot.half, start, extent.entries,
            *extent.displacements]  # fmt: skip


def _in_one_order(a: Tensor) -> Tensor:
    """The sum over the second axis, in an order that does not depend on the size of the first.

    That of `torch.sum` may, as it divides its work among multiprocessors. Here each half of the
    entries, with zeros up to a power of two, is added to the other one.
    """
    size = 1 << max(0, a.shape[1] - 1).bit_length()
    a = F.pad(a, (0, 0) * (a.ndim - 2) + (0, size - a.shape[1]))
    while size > 1:
        size //= 2
        a = a[:, :size] + a[:, size:]
    return a[:, 0]


class _Average(NamedTuple):
    """An average over some positions.

    Attributes:
        taken: At which positions and displacements what it averages is stored.
        made: The same of its result.
        axes: Its windows along both axes.
        start: Where the result begins among the numbers of a pair that go outside.
    """

    taken: Extent
    made: Extent
    axes: tuple[Windows, Windows]
    start: int


class KernelEvaluation:
    """Evaluates a region of images.

    Args:
        task: What is evaluated.
        region: A part of its program.
        like: A tensor of the type and on the device of the computation.
    """

    def __init__(self, task: Task, region: Region, like: Tensor) -> None:
        assert region.layout is not None
        self.region = region
        self._task, self._like, self._layout = task, like, region.layout
        self._pairs = Pairs(task, region, like)
        self._form = Form(task.plan.distance, like.dtype == torch.float64)
        self._assemble({})

    def _assemble(self, lengths: dict[int, tuple[int, int]]) -> None:
        """Make the tables for series with so many coefficients; the code is the same for all."""
        task, region = self._task, self.region
        self._lengths = lengths
        self._assembly = a = Assembly(
            task.program, region, self._form, in_place=False, lengths=lengths
        )
        sizes = [math.prod(t.place.positions) for t in a.terms]
        starts = itertools.accumulate([0, *sizes])
        where = {t.start: s for t, s in zip(a.terms, starts, strict=False)}
        self._source = source(a, where, self._form.double)
        known = [i for i in region.steps if isinstance(task.program.steps[i].operation, Input)]
        self._inputs = []
        for i, row in zip(known, a.inputs, strict=True):
            place = self._layout.places[i]
            channels, start, number = row[5], row[6], row[8]
            apart = math.prod(place.positions)
            at, half = row[:2]
            self._inputs.append([*_shape(place), at, half, channels, where[start], apart, number])
        self._sources, self._stored = (
            [_outside(slot, start, a.extent(i)) for i, slot, start in values]
            for values in (a.sources, a.stored)
        )
        # What is averaged is stored at every displacement that the region computes.
        self._averages, self._averaged, self._scratch = [], [], 0
        for step, slot, start in a.averaged:
            taken = Extent.within(slot.place.positions, region.reach)
            self._averages.append(_Average(taken, a.extent(step), region.averages[step], start))
            self._averaged.append(_outside(slot, self._scratch, taken))
            self._scratch += 2 * taken.entries

    def _displacements(self) -> tuple[list[int], int, int]:
        """Those of columns that are needed, those of rows, and which one comes first."""
        if not self.region.full:
            return [0], 1, 0
        (p, q), (down, across) = self._layout.room, self.region.reach
        # The image of d is that of d - q too, and in a circle the one of rows that of dy - p.
        columns = [d for d in range(q) if d <= across or q - d <= across]
        return (columns, p, 0) if self._layout.circles[0] else (columns, 2 * down + 1, down)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the kernel depends on, except samples and numbers of formulas."""
        a = self._assembly
        tables = self._inputs, self._sources, self._stored, a.collected, self._averaged
        found = (self._source, tables, self._averages, self._displacements(), self._layout,
                 self._form.distance)  # fmt: skip
        return hashlib.sha256(repr(found).encode()).hexdigest()

    def __call__(self, block: Block, states: Mapping[int, Value]) -> dict[int, Value]:
        """The values that are needed outside.

        Args:
            block: For which pairs.
            states: Of the values that the region takes.
        """
        if (lengths := self._pairs.lengths(block)) != self._lengths:
            self._assemble(lengths)
        a = self._assembly
        pairs = self._pairs.chosen(block).to(self._like.device)
        one, _ = self._pairs.terms(block.rows, 0, a.terms, a.length)
        two, _ = self._pairs.terms(block.columns, 1, a.terms, a.length)
        external = self._pairs.packed(states, pairs, block, a)
        columns, down, above = self._displacements()
        images = len(columns) * down
        tasks = len(pairs) * images
        size = a.buffer + _SPARE
        instances = min(tasks, self._instances())
        totals = self._like.new_zeros(len(pairs), images, len(a.collected), 2)
        outputs = self._like.new_zeros(len(pairs), a.states)
        scratch = self._like.new_zeros(len(pairs), self._scratch)
        rows = self._source.rows
        shape = [tasks, size, one.shape[1], len(rows[0]), len(a.sources), external.shape[1],
                 len(self._inputs), len(rows), len(a.collected), len(self._stored), a.states,
                 len(self._averaged), self._scratch, len(columns), down, above,
                 self._layout.room[1], self._layout.margin]  # fmt: skip
        if not tasks:
            return self._states(block, pairs, totals, outputs)
        with torch.cuda.device_of(self._like):  # type: ignore[no-untyped-call]
            load(self._source.text)[(instances,)](
                self._like.new_zeros(instances * size),
                self._integers(shape),
                self._like.new_tensor([*a.numbers, 0.0]),
                pairs.to(torch.int32),
                one,
                two,
                self._integers(columns),
                self._integers(self._sources),
                external,
                *(self._integers(t) for t in (self._inputs, rows, self._source.same, a.collected)),
                totals,
                self._integers(self._stored),
                outputs,
                self._integers(self._averaged),
                scratch,
                FULL=self.region.full,
                DISTANCE=self._form.distance,
                BLOCK=_BLOCK,
                num_warps=_WARPS,
            )
        for average, row in zip(self._averages, self._averaged, strict=True):
            part = scratch[:, row[7] : row[7] + 2 * average.taken.entries].contiguous()
            made = averaged(part, average.taken, average.made, average.axes)
            outputs[:, average.start : average.start + made.shape[1]] = made
        return self._states(block, pairs, totals, outputs)

    def _states(
        self, block: Block, pairs: Tensor, totals: Tensor, outputs: Tensor
    ) -> dict[int, Value]:
        found = self._pairs.states(block, pairs, outputs, self._assembly, packed=True)
        return {**found, **self._pairs.sums(block, pairs, _in_one_order(totals.double()))}

    def _integers(self, of: Sequence[Sequence[int]] | Sequence[int]) -> Tensor:
        """A table in memory of the device, with at least one number."""
        table = torch.tensor(of or [0], dtype=torch.int32)
        return table.flatten().to(self._like.device)

    def _instances(self) -> int:
        """Return how many program instances the device holds at once."""
        if self._like.device.type != "cuda":
            return _INSTANCES  # in Triton's interpreter
        of = torch.cuda.get_device_properties(self._like.device)
        return _INSTANCES * int(of.multi_processor_count)
