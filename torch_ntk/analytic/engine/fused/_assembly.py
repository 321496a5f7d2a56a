"""Assembly of a region: which steps share a pass, and where their values are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ....activations import Form
from ..._program import Program
from ...operations import Input, Operation
from ._layout import ROUND, Filter, Place
from ._packed import Extent
from ._region import Region
from ._source import SERIES_ROOM, TOGETHER, Coefficients, Integers, Pass, Slot, Stage

LANES = 384
"""Pairs of vectors that go through a network together: whole registers of any processor."""
# The largest number of formulas in a pass.
_MOST_STAGES = 4
_VECTOR = Place((LANES // ROUND, ROUND), (1, 1), ROUND, 0, LANES + ROUND)


@dataclass(frozen=True)
class Term:
    """Numbers of an image that a formula uses, one for each position.

    Attributes:
        step: The step whose formula uses the term. A term of known features is one channel.
        index: The index among the terms of the step; for vectors, -1 stands for the variances of
            known features.
        place: The layout of the term in memory.
        start: The index at which the term begins in the array with all terms of an image.
        exact: Whether the term belongs to the formula for equal values.
    """

    step: int
    index: int
    place: Place
    start: int
    exact: bool


@dataclass(frozen=True)
class Load:
    """An inner product of vectors that a region of vectors takes as input.

    Attributes:
        step: The step whose value it is: known features, or a step outside of the region.
        slot: The memory into which it is loaded.
        number: For known features, the index of 1/channels in `Assembly.numbers`.
        term: For known features, where their variances begin in the terms of the first and of the
            second image.
    """

    step: int
    slot: Slot
    number: int = 0
    term: tuple[int, int] = (0, 0)


class Assembly:
    """The passes of a region and the places of all values in memory, for any images.

    Attributes:
        region: The region that is evaluated.
        passes: The passes in their order, each in two versions: for two different images, and for
            equal ones at displacement 0.
        terms: The terms of images that formulas use, those for equal values last.
        numbers: The numbers of all formulas, one after the other.
        collected: For each sum over positions, a row with the origin and half of the slot that is
            summed, its rows, the scale of its rows, and its width.
        stored: For each value that is needed outside of the region, its step, its slot, and the
            index of its first number among the `states` numbers of a pair.
        averaged: For each average over some positions, its step, the slot of the value that is
            averaged, and the index of the first number of the result, as in `stored`.
        sources: For each value that comes from outside of the region, its step, its slot, and the
            index of its first number among the `external` numbers of a pair.
        inputs: For each step of known features, a row with the origin and half of its slot, its
            rows, the scale of its rows, its width, the number of channels, where the first channel
            begins among the terms, the distance from one channel to the next, the index of
            1/channels among the numbers, and where its mask begins.
        loads: For vectors, the values from which the region starts.
        last: For vectors, the program's last step if the loop turns its distances into covariances,
            and where its variances begin in the terms of the first and of the second image.
        external: The number of entries that come from outside of the region for one pair.
        states: The number of entries that are needed outside of the region for one pair.
        masks: The layouts of the masks, which are 1 at positions and 0 in margins.
        buffer: The number of entries of all slots together.
        sums: The number of entries that the sums of one filter or series need.
    """

    def __init__(
        self,
        program: Program,
        region: Region,
        form: Form,
        spread: int = 0,
        *,
        in_place: bool = True,
        lengths: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        """Divide the steps into passes and assign memory to all values.

        Args:
            program: The network.
            region: The part of the network that is assembled.
            form: The kind of loop for which formulas are written.
            spread: For vectors, the distance from one term of the second vectors to the next.
            in_place: Whether a filter that reads everything before it writes anything may write to
                the memory of its input.
            lengths: The numbers of odd and of even coefficients of each step with a series.
        """
        self.region = region
        self.passes: list[tuple[Pass, Pass]] = []
        self.terms: list[Term] = []
        self.numbers: list[float] = []
        self.collected: list[list[int]] = []
        self.stored: list[tuple[int, Slot, int]] = []
        self.averaged: list[tuple[int, Slot, int]] = []
        self.sources: list[tuple[int, Slot, int]] = []
        self.inputs: list[list[int]] = []
        self.loads: list[Load] = []
        self.last: dict[int, tuple[int, int]] = {}
        self.external = self.states = 0
        self.masks: list[Place] = []
        self._program, self._form, self._spread = program, form, spread
        self._in_place, self._lengths = in_place, dict(lengths or {})
        self._slots: dict[int, Slot] = {}
        self._free: dict[tuple[int, int, int], list[int]] = {}
        self.buffer = 0
        self.sums = 1
        self._ends = [0, 0]  # of the terms, plain and exact ones
        self._assemble()

    # -- what loops are given ----------------------------------------------------------------

    def tables(self, terms: Sequence[Term], starts: Sequence[int]) -> Integers:
        """Return a row for each term: target, source, rows, columns, scale of columns, width."""
        rows = [
            [t.start, s, *t.place.positions, t.place.scale[1], t.place.width]
            for t, s in zip(terms, starts, strict=True)
        ]
        return np.array(rows, dtype=np.int64).reshape(len(rows), 6)

    @property
    def plain_terms(self) -> int:
        """The number of terms that belong to formulas for different values."""
        return sum(not t.exact for t in self.terms)

    @property
    def plain_length(self) -> int:
        """The number of entries that these terms have for one image."""
        return max(1, self._ends[0])

    @property
    def term_length(self) -> int:
        """The number of entries that all terms have for one image."""
        return max(1, *self._ends)

    @property
    def mask_length(self) -> int:
        """The number of entries of all masks together."""
        return max(1, sum(self._room(p) for p in self.masks))

    def mask_table(self) -> Integers:
        """Return the rows of `tables` for the masks."""
        starts = np.cumsum([0, *(self._room(p) for p in self.masks)])
        terms = [Term(0, 0, p, int(s), False) for p, s in zip(self.masks, starts, strict=False)]
        return self.tables(terms, [0] * len(terms))

    # -- assembling --------------------------------------------------------------------------

    def _assemble(self) -> None:
        if self.region.layout is not None:
            self._count_terms()
        chains = self._chains()
        last_use = self._last_uses(chains)
        for i in self.region.inputs:
            self._from_outside(i)
        for i in self.region.steps:
            if isinstance(self._program.steps[i].operation, Input):
                self._features(i)
        for steps in chains:
            end = steps[-1]
            self._chain(steps, last_use)
            for j in [j for j in self._slots if last_use.get(j, -1) <= end]:
                self._give_back(j)
        for i in self.region.collectors:
            slot = self._slots[self._program.steps[i].inputs[0]]
            place = slot.place
            row = [slot.origin, slot.half, place.positions[0], place.scale[0], place.width]
            self.collected.append(row)
        for i in self.region.outside:
            self.stored.append((i, self._slots[i], self.states))
            self.states += 2 * self.extent(i).entries
        for i in self.region.averages:
            slot = self._slots[self._program.steps[i].inputs[0]]
            self.averaged.append((i, slot, self.states))
            self.states += 2 * self.extent(i).entries
        last = len(self._program.steps) - 1
        if self.region.layout is None and self._form.distance and last in self.region.outside:
            self.last[last] = self._term(last, -1)
        self.terms.sort(key=lambda t: t.exact)  # without changing the order otherwise

    def _chains(self) -> list[list[int]]:
        """Return chains of steps: each with those after it that alone take its value."""
        region, steps = self.region, self._program.steps
        users = [j for s in steps for j in s.inputs]
        ends: dict[int, list[int]] = {}
        for i in region.steps:
            if i not in region.fused:
                continue
            begun = None
            if region.fused[i].taps is None and region.fused[i].formula.series is None:
                begun = next(
                    (
                        j
                        for j in reversed(steps[i].inputs)
                        if j in ends and users.count(j) == 1 and j not in region.outside
                        and self._goes_on(ends[j])
                    ),
                    None,
                )  # fmt: skip
            ends[i] = [*ends.pop(begun), i] if begun is not None else [i]
        return sorted(ends.values(), key=lambda c: c[-1])

    def _goes_on(self, chain: list[int]) -> bool:
        """Return whether the pass may contain further steps: a nonlinear operation ends it.

        Otherwise the code of networks without filters would grow with their depth.
        """
        last = self._program.steps[chain[-1]].operation
        return (
            len(chain) < _MOST_STAGES and isinstance(last, Operation) and not last.needs_variances
        )

    def _last_uses(self, chains: list[list[int]]) -> dict[int, int]:
        """Return per value the end of the last chain that takes it; values of sums stay."""
        found: dict[int, int] = {}
        for steps in chains:
            for i in steps:
                for j in self._program.steps[i].inputs:
                    found[j] = steps[-1]
        kept = len(self._program.steps)
        for i in (*self.region.collectors, *self.region.averages):
            found[self._program.steps[i].inputs[0]] = kept
        return {**found, **dict.fromkeys(self.region.outside, kept)}

    def _place(self, i: int) -> Place:
        return _VECTOR if self.region.layout is None else self.region.layout.places[i]

    def _slot(self, i: int) -> Slot:
        """Reserve memory for the value of a step."""
        place = self._place(i)
        free = self._free.setdefault((place.width, place.above, place.length), [])
        if free:
            start = free.pop()
        else:
            start, self.buffer = self.buffer, self.buffer + 2 * place.length
        self._slots[i] = Slot(place, start)
        return self._slots[i]

    def _give_back(self, i: int) -> None:
        slot = self._slots.pop(i)
        self._free[slot.place.width, slot.place.above, slot.place.length].append(slot.start)

    def _room(self, place: Place) -> int:
        layout = self.region.layout
        copies = 2 if layout is not None and layout.circles[0] else 1
        return (copies * place.positions[0] + 1) * place.width + 2 * ROUND

    def _term(self, step: int, index: int, *, exact: bool = False) -> tuple[int, int]:
        """Add a term of a step, and return where it is in those of either image."""
        place = self._place(step)
        if self.region.layout is None:
            start = len(self.terms)
            self.terms.append(Term(step, index, place, start, exact))
            return start, start * self._spread
        start = self._ends[exact]
        self.terms.append(Term(step, index, place, start, exact))
        self._ends[exact] += self._room(place)
        return start, start

    def _count_terms(self) -> None:
        """Count the terms; those of formulas for equal values come after all others."""
        for i in self.region.steps:
            operation = self._program.steps[i].operation
            if isinstance(operation, Input):
                count = operation.x1.shape[1]
            elif i in self.region.fused:
                count = self.region.fused[i].formula.term_count + sum(self.length(i))
            else:
                continue
            self._ends[1] += count * self._room(self._place(i))

    def length(self, i: int) -> tuple[int, int]:
        """Return the number of odd and of even coefficients of a series, zeros included."""
        fused = self.region.fused.get(i)
        if fused is None or fused.formula.series is None:
            return 0, 0
        odd, even = (-(-n // TOGETHER) * TOGETHER for n in self._lengths.get(i, (1, 0)))
        return odd, even

    def _coefficients(self, i: int) -> Coefficients | None:
        """Return the places of the coefficients of a series; None if the step has none."""
        lengths = self.length(i)
        if not any(lengths):
            return None
        before = self.region.fused[i].formula.term_count
        start, *_ = (self._term(i, before + n) for n in range(sum(lengths)))
        room = self._room(self._place(i))
        steps = (1, self._spread) if self.region.layout is None else (room, room)
        self.sums = max(self.sums, SERIES_ROOM)
        return Coefficients(start, steps, (lengths[0] // TOGETHER, lengths[1] // TOGETHER))

    def _mask(self, place: Place) -> int:
        """Return where the mask of a place begins."""
        if self.region.layout is None:
            return 0
        if place not in self.masks:
            self.masks.append(place)
        before = self.masks[: self.masks.index(place)]
        return sum(self._room(p) for p in before)

    def _from_outside(self, i: int) -> None:
        slot = self._slot(i)
        if self.region.layout is None:
            self.loads.append(Load(i, slot))
            return
        self.sources.append((i, slot, self.external))
        self.external += 2 * self.extent(i).entries

    def _features(self, i: int) -> None:
        slot = self._slot(i)
        features = self._program.steps[i].operation
        assert isinstance(features, Input)
        channels = features.x1.shape[1]
        number = self._number((1 / channels,))
        if self.region.layout is None:
            self.loads.append(Load(i, slot, number, self._term(i, -1)))
            return
        place = slot.place
        start, *_ = (self._term(i, c)[0] for c in range(channels))
        self.inputs.append(
            [slot.origin, slot.half, place.positions[0], place.scale[0], place.width, channels,
             start, self._room(place), number, self._mask(place)]
        )  # fmt: skip

    def extent(self, i: int) -> Extent:
        """Return which displacements of a value are kept outside of the loop."""
        return Extent.within(self._program.steps[i].positions, self.region.kept.get(i, (0, 0)))

    def _number(self, numbers: Sequence[float]) -> int:
        self.numbers += numbers
        return len(self.numbers) - len(numbers)

    def _chain(self, steps: list[int], last_use: dict[int, int]) -> None:
        region, layout = self.region, self.region.layout
        first, end = steps[0], steps[-1]
        read = None
        if region.fused[first].taps is not None:
            assert layout is not None
            (j,) = self._program.steps[first].inputs
            read = self._slots[j], layout.filters[first]
            taps = read[1]
            rows = taps.rows.shifts
            if rows:
                tall = taps.rows.stride * self._place(first).positions[0] + max(rows) - min(rows)
                self.sums = max(self.sums, (tall + 1) * self._place(first).width + 2 * ROUND)
        stages, same = [], []
        for n, i in enumerate(steps):
            fused, operation = region.fused[i], self._program.steps[i]
            slots = tuple(
                None if (n and j == steps[n - 1]) or (n == 0 and read) else self._slots[j]
                for j in operation.inputs
            )
            number = self._number(fused.formula.numbers)
            terms = tuple(self._term(i, t) for t in range(fused.formula.term_count))
            stages.append(Stage(fused.formula, slots, number, terms, self._coefficients(i)))
            exact = fused.exact
            if exact is None or layout is None:
                same.append(stages[-1])
                continue
            places = tuple(self._term(i, t, exact=True) for t in range(exact.term_count))
            same.append(Stage(exact, slots, number, places))
        # A filter has read all before it writes: its result may go where its input was.
        if self._in_place and read is not None and _reads_first(read[1]):
            (j,) = self._program.steps[first].inputs
            later = {m for i in steps[1:] for m in self._program.steps[i].inputs}
            if last_use[j] == end and j not in later:
                self._give_back(j)
        to = self._slot(end)
        mask = self._mask(to.place)
        one, two = (Pass(read, tuple(s), to, mask) for s in (stages, same))
        self.passes.append((one, two))


def _reads_first(taps: Filter) -> bool:
    """Return whether a filter reads everything before it writes anything; see `_source.py`."""
    several = len(taps.rows.shifts) > 1 and len(taps.columns.shifts) > 1
    return several or taps.strides != (1, 1)
