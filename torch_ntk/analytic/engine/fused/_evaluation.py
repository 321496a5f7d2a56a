"""Evaluation of a region for a block of pairs: its loops fill arrays, which become states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....activations import Form
from ...operations import CLOSE, FEW_CHANNELS, Input, State
from .._task import Block, Images, Task
from ._assembly import LANES, Assembly
from ._drivers import TOGETHER, driver, tile
from ._layout import ROUND, Place
from ._module import load
from ._packed import Value
from ._pairs import Pairs
from ._region import Region, Shape
from ._source import Integers, Slot, code
from ._threads import in_threads

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
# Bytes of a line of the cache.
_LINE = 64


class _Averages(NamedTuple):
    """The averages over positions of a region, as tables that the loop reads.

    Attributes:
        table: A row of 16 integers for each average: origin and half of the slot that is averaged;
            where K and Θ of the result begin; columns and width of the slot; rows and columns of
            the result; where the entries for rows and for columns begin in `windows`; the numbers
            of displacements of the result that are kept, along rows and along columns; rows of the
            slot; where the results of this average begin in the room for sums along rows; and the
            number of windows of each position, along rows and along columns.
        windows: The windows that contain each position, padded with -1 so that all positions of an
            axis have the same number of them.
        weights: The weight of the position in each entry of `windows`.
        most: The largest number of products that one row of an image adds to a row of results.
        room: The number of entries that sums along rows need, before sums along columns are taken.
    """

    table: Integers
    windows: Integers
    weights: Array
    most: int
    room: int


class RegionEvaluation:
    """A function that evaluates a region for a block of pairs of images.

    Args:
        task: The computation.
        region: A part of its program.
        like: A tensor of the type of the computation.
    """

    def __init__(self, task: Task, region: Region, like: Tensor) -> None:
        self.region = region
        self._task, self._like = task, like
        self._pairs = Pairs(task, region, like)
        self._form = Form(task.plan.distance, like.dtype == torch.float64)
        columns = len(task.program.known[0].both[1])
        self._spread = -(-(columns + LANES + ROUND) // ROUND) * ROUND
        loops = driver(region.shape.name.lower(), self._form.double, averages=bool(region.averages))
        self._functions = load(loops)
        self._assemble({})

    def __call__(self, block: Block, states: Mapping[int, Value]) -> dict[int, Value]:
        """Return the values that are needed outside of the region.

        Args:
            block: The pairs of images.
            states: The values that the region takes as input.
        """
        if (lengths := self._pairs.lengths(block)) != self._lengths:
            self._assemble(lengths)
        if self.region.shape is Shape.VECTORS:
            return self._vectors(block, states)
        return self._images(block, states)

    def _assemble(self, lengths: dict[int, tuple[int, int]]) -> None:
        """Make passes whose series have these lengths; the code of other passes stays the same."""
        self._lengths = lengths
        self._assembly = Assembly(
            self._task.program, self.region, self._form, self._spread, lengths=lengths
        )
        self._code = code(self.region.layout, self._assembly.passes, self._form.double)
        passes = [load(source)["run"].address for source in self._code.sources]
        self._addresses = np.array([*passes, 0], dtype=np.int64)

    # -- images ------------------------------------------------------------------------------

    def _images(self, block: Block, states: Mapping[int, Value]) -> dict[int, Value]:
        a = self._assembly
        chosen = self._pairs.chosen(block)
        columns = self._columns_of_displacements()
        totals = np.zeros((len(chosen), len(columns), len(a.collected), 2))
        outputs = self._empty(len(chosen), a.states)
        external = self._pairs.packed(states, chosen, block, a).numpy()
        sources, stored = (
            np.array([self._row(*value) for value in which], np.int64).reshape(-1, 11)
            for which in (a.sources, a.stored)
        )
        inputs = np.array(a.inputs, dtype=np.int64).reshape(-1, 10)
        collected = np.array(a.collected, dtype=np.int64).reshape(-1, 5)
        values = inputs, external, sources, collected, totals, stored, outputs
        if self.region.full:
            self._at_displacements(block, chosen.numpy(), columns, values)
        else:
            self._at_same_positions(block, chosen.numpy(), values)
        # Displacement by displacement, so that it does not matter how many pairs there are.
        sums = np.zeros((len(chosen), len(a.collected), 2))
        for d in range(len(columns)):
            sums += totals[:, d]
        found = self._pairs.states(block, chosen, torch.from_numpy(outputs), a, packed=True)
        return {**found, **self._pairs.sums(block, chosen, torch.from_numpy(sums))}

    def _at_displacements(
        self, block: Block, pairs: Integers, columns: Integers, values: tuple[Any, ...]
    ) -> None:
        """Go over all displacements of some pairs that are needed, along `columns` in these."""
        a, layout = self._assembly, self.region.layout
        assert layout is not None
        (one, starts), (two, _) = (
            self._pairs.terms(images, side, a.terms, a.length)
            for side, images in enumerate((block.rows, block.columns))
        )
        averages = self._averages()
        # All displacements of a pair add to its averages, one after the other.
        each = len(columns) if a.averaged else 1
        shape = np.array(
            [*layout.room, layout.margin, *layout.circles, a.plain_length, a.plain_terms,
             self.region.reach[0], each, averages.most],
            dtype=np.int64,
        )  # fmt: skip
        ones = self._empty(max((math.prod(m.positions) for m in a.masks), default=1)) + 1
        *before, outputs = values
        given = (shape, columns, self._addresses, self._code.rows, self._code.same,
                 self._array(a.numbers), pairs, one.numpy(), two.numpy(),
                 a.tables(a.terms, starts), ones, a.mask_table(), *before, *averages[:3],
                 outputs)  # fmt: skip
        sizes = (a.buffer + 2 * ROUND, (2, a.sums), a.term_length, a.plain_length, a.mask_length,
                 averages.room)  # fmt: skip
        count = len(pairs) * -(-len(columns) // each)
        self._in_threads("displacements", given, sizes, count)

    def _at_same_positions(self, block: Block, pairs: Integers, values: tuple[Any, ...]) -> None:
        """Evaluate some pairs at the same position in both images."""
        a, layout = self._assembly, self.region.layout
        assert layout is not None
        one, two = (
            self._laid_out(images, side) for side, images in enumerate((block.rows, block.columns))
        )
        shape = np.array([*layout.room, layout.margin], dtype=np.int64)
        given = (shape, self._form.distance, self._addresses, self._code.rows, self._code.same,
                 self._array(a.numbers), pairs, one, two, self._mask(), *values)  # fmt: skip
        sizes = a.buffer + 2 * ROUND, (2, a.sums)
        self._in_threads("same_positions", given, sizes, len(pairs))

    def _in_threads(
        self, name: str, given: tuple[Any, ...], rooms: Sequence[Any], count: int
    ) -> None:
        """Call a loop on ranges of 0 … count, in threads; each has rooms of these sizes."""
        function = self._functions[name]

        def work(begin: int, end: int) -> None:
            function(begin, end, *given, *(aligned(size, self._dtype) for size in rooms))

        in_threads(work, count)

    def _laid_out(self, images: Images, side: int) -> Array:
        """Return the terms of some images as loops over the same positions read them."""
        a = self._assembly
        to = self._empty(len(images), a.term_length)
        for t, value in zip(
            a.terms, self._pairs.each_term(images, side, a.terms, a.length), strict=True
        ):
            self._lay_out(to, t.start, t.place, value)
        return to

    def _mask(self) -> Array:
        """Return the masks of all places in the same form."""
        a = self._assembly
        to: Array = self._empty(1, a.mask_length)
        for place, row in zip(a.masks, a.mask_table(), strict=True):
            self._lay_out(to, row[0], place, self._like.new_ones(1, *place.positions))
        return to.reshape(-1)

    def _lay_out(self, to: Array, start: int, place: Place, value: Tensor) -> None:
        """Copy `[n, P, Q]` into memory, from the first entry of a place on."""
        p, q = place.positions
        rows = torch.from_numpy(to[:, start : start + p * place.width])
        rows.as_strided((len(to), p, q), (rows.stride(0), place.width, 1)).copy_(value)

    def _row(self, step: int, slot: Slot, start: int) -> list[int]:
        """Return the row of a table that says where a value is inside and outside of the loops."""
        extent = self._assembly.extent(step)
        return [slot.origin, slot.half, start, start + extent.entries, *slot.place.positions,
                *slot.place.scale, slot.place.width, *extent.displacements]  # fmt: skip

    def _columns_of_displacements(self) -> Integers:
        """The displacements along columns whose images are needed, as `_layout.py` counts them."""
        if not self.region.full:
            return np.zeros(1, np.int64)
        assert self.region.layout is not None
        reach, count = self.region.reach[1], self.region.layout.room[1]
        # The image of d contains d - count too, and the one of 0 no other.
        return np.array([d for d in range(count) if d <= reach or count - d <= reach], np.int64)

    def _averages(self) -> _Averages:
        """Return the averages over some positions as tables for the loop."""
        rows: list[list[int]] = []
        windows: list[int] = []
        weights: list[float] = []
        most, room = 1, 0
        for step, slot, start in self._assembly.averaged:
            extent = self._assembly.extent(step)
            p, q = slot.place.positions
            row = [slot.origin, slot.half, start, start + extent.entries, q, slot.place.width,
                   *extent.positions]  # fmt: skip
            for axis in self.region.averages[step]:
                row.append(len(windows))
                for position in axis.around:
                    windows += [o for o, _ in position]
                    weights += [w for _, w in position]
            around = [axis.most for axis in self.region.averages[step]]
            rows.append([*row, *extent.displacements, p, room, *around])
            room += 2 * extent.displacements[0] * extent.positions[0] * slot.place.width
            most = max(most, q * around[1] ** 2)
        table = np.array(rows, np.int64).reshape(-1, 16)
        return _Averages(table, np.array([*windows, 0], np.int64), self._array(weights), most, room)

    def _array(self, numbers: Sequence[float]) -> Array:
        return np.array([*numbers, 0.0], dtype=np.float64).astype(self._dtype)

    def _empty(self, *shape: int) -> Array:
        return np.zeros(shape, dtype=self._dtype)

    @property
    def _dtype(self) -> type:
        return np.float64 if self._form.double else np.float32

    # -- vectors -----------------------------------------------------------------------------

    def _vectors(self, block: Block, states: Mapping[int, Value]) -> dict[int, Value]:
        a = self._assembly
        n, m = block.shape
        one = self._scalars(block.rows, 0)
        two = aligned((max(1, len(a.terms)), self._spread), self._dtype)
        two[: len(a.terms), :m] = self._scalars(block.columns, 1).T[: len(a.terms)]
        x1, x2, loads, external = self._loaded(block, states)
        offset = block.rows.start - block.columns.start
        starts = np.arange(n, dtype=np.int64) + offset if self._task.symmetric else np.zeros(n, int)
        starts = np.clip(starts, 0, m).astype(np.int64)
        shape = np.array([n, m, LANES, FEW_CHANNELS], dtype=np.int64)
        results = np.array(
            [[s.origin, s.half, i in a.last, *a.last.get(i, (0, 0))] for i, s, _ in a.stored],
            dtype=np.int64,
        )
        # Of what tensor operations take, no entry may be left as memory was.
        make = np.empty if len(a.last) == len(a.stored) else np.zeros
        kernels: Array = make((len(a.stored), n, m), self._dtype)
        tangents: Array = make((len(a.stored), n, m), self._dtype)
        ones = aligned((LANES + 2 * ROUND,), self._dtype)
        ones[:] = 1
        close = self._dtype(CLOSE[self._like.dtype])
        given = (shape, self._addresses, self._code.rows, self._array(a.numbers), starts, loads, x1,
                 x2, one, two.reshape(-1), ones, close, external, results, kernels,
                 tangents)  # fmt: skip
        rooms = a.buffer + 2 * ROUND, (2, a.sums), (len(loads), TOGETHER, LANES)
        self._in_threads("vectors", given, rooms, -(-n // TOGETHER))
        made: dict[int, Value] = {}
        for i, (step, _, _) in enumerate(a.stored):
            k, t = (torch.from_numpy(of[i])[..., None, None] for of in (kernels, tangents))
            made[step] = State(
                k, t if self._task.ntk else None, self._form.distance and step not in a.last, False
            )
        return made

    def _scalars(self, images: Images, side: int) -> Array:
        """Return the terms of some vectors, `[n, terms]`."""
        parts = []
        values: dict[int, tuple[Tensor, ...]] = {}
        for t in self._assembly.terms:
            if t.index < 0:
                q = images.variances[t.step]
                assert q is not None
                parts.append(q.flatten(1))
                continue
            if t.step not in values:
                length = self._assembly.length(t.step)
                values[t.step] = self._pairs.values(images, side, t.step, False, length)
            parts.append(values[t.step][t.index].flatten(1))
        whole = torch.cat(parts, 1) if parts else self._like.new_zeros(len(images), 1)
        return np.ascontiguousarray(whole.detach().numpy())

    def _loaded(
        self, block: Block, states: Mapping[int, Value]
    ) -> tuple[Array, Array, Integers, Array]:
        """Return what a loop over vectors starts from.

        These are the features of the first and of the second vectors, a row of integers for each
        load, and the values of other steps.
        """
        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        others: list[Tensor] = []
        rows: list[list[int]] = []
        at = 0
        for load_ in self._assembly.loads:
            operation = self._task.program.steps[load_.step].operation
            slot = load_.slot
            if isinstance(operation, Input):
                x1, x2 = operation.both
                firsts.append(x1[block.rows.slice].flatten(1))
                seconds.append(x2[block.columns.slice].flatten(1))
                channels = x1.shape[1]
                rows.append([1, channels, at, slot.origin, slot.half, load_.number, *load_.term])
                at += channels
            else:
                s = states[load_.step]
                assert isinstance(s, State)
                t = s.ntk if s.ntk is not None and s.ntk.ndim else torch.zeros_like(s.nngp)
                rows.append([0, len(others), 0, slot.origin, slot.half, 0, 0, 0])
                others.append(torch.stack([s.nngp[..., 0, 0], t[..., 0, 0]]))
        n, m = block.shape
        external = torch.stack(others).numpy() if others else self._empty(1, 2, 1, 1)
        return (
            self._rows(firsts, n),
            self._columns(seconds, m),
            np.array(rows, dtype=np.int64).reshape(-1, 8),
            np.ascontiguousarray(external),
        )

    def _rows(self, parts: Sequence[Tensor], n: int) -> Array:
        """Return features of first vectors, with zeros up to a whole number of tiles."""
        whole = _beside(parts, self._like.new_zeros(n, 1))
        short = -n % TOGETHER
        if short:
            whole = torch.cat([whole, whole.new_zeros(short, whole.shape[1])])
        return whole.contiguous().numpy()

    def _columns(self, parts: Sequence[Tensor], m: int) -> Array:
        """Return features of second vectors as `[tiles, channels, vectors of a tile]`."""
        width = tile(self._form.double).columns
        whole = _beside(parts, self._like.new_zeros(m, 1))
        to = aligned((-(-m // width), whole.shape[1], width), self._dtype)
        full, rest = divmod(m, width)
        tiles = torch.from_numpy(to)
        tiles[:full] = whole[: m - rest].reshape(full, width, whole.shape[1]).transpose(1, 2)
        if rest:
            tiles[full, :, :rest] = whole[m - rest :].T
        return to


def _beside(parts: Sequence[Tensor], otherwise: Tensor) -> Tensor:
    """Return the features of several inputs, concatenated."""
    if not parts:
        return otherwise
    return parts[0] if len(parts) == 1 else torch.cat([*parts], 1)


def aligned(shape: int | Sequence[int], dtype: type) -> Array:
    """Return zeros that begin at a cache line, so that no register is read from two of them."""
    size = np.dtype(dtype).itemsize
    count = int(np.prod(shape))
    whole: Array = np.zeros(count + _LINE // size, dtype)
    start = -whole.ctypes.data % _LINE // size
    return whole[start : start + count].reshape(shape)
