"""Which steps of a program go through fused loops, and which of them together.

Steps that have a fused form and are connected make a region. Between regions are the steps that
have none: these are evaluated by tensor operations, with whole states in memory. To keep the order,
every step has a level, even ones for regions and odd ones for other steps, that never falls along
the program. A step joins the region that its inputs are in, if all have one layout; otherwise it
begins another, two levels up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ....activations import Form
from ..._program import Program
from ...operations import Fused, Input
from .._plan import Plan
from ._layout import Unsuitable, lay_out
from ._packed import Extent
from ._reach import set_reaches
from ._region import Region, Shape
from ._windows import windows


@dataclass(frozen=True)
class Partition:
    """A program as regions and single steps.

    Attributes:
        units: Regions and numbers of steps in the order in which they can be evaluated.
        reasons: For each step that is in no region, the reason.
        kernels: Whether regions are Triton kernels, in place of loops on a CPU.
    """

    units: tuple[Region | int, ...]
    reasons: Mapping[int, str]
    kernels: bool = False

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of the partition, in order."""
        return tuple(u for u in self.units if isinstance(u, Region))

    def largest(self, program: Program, plan: Plan) -> int:
        """The entries for one pair of images of the largest value that is in memory as a whole.

        Args:
            program: The network.
            plan: In which form its values are computed.
        """
        most = 1
        for unit in self.units:
            if isinstance(unit, int):
                for i in (unit, *program.steps[unit].inputs):
                    positions = math.prod(program.steps[i].positions)
                    most = max(most, positions**2 if plan.full[i] else positions)
                continue
            for i in (*unit.inputs, *unit.outside, *unit.averages):
                reach = unit.kept.get(i, (0, 0))
                most = max(most, Extent.within(program.steps[i].positions, reach).entries)
            for i in unit.averages if self.kernels else ():
                (j,) = program.steps[i].inputs  # kernels store what they average
                most = max(most, Extent.within(program.steps[j].positions, unit.reach).entries)
        return most


def unfused(program: Program, reason: str) -> Partition:
    """Return the partition in which every step is evaluated alone."""
    steps = [i for i, s in enumerate(program.steps) if not isinstance(s.operation, Input)]
    return Partition(tuple(steps), dict.fromkeys(steps, reason))


def partition(program: Program, plan: Plan, double: bool) -> Partition:
    """Divide a program into regions and single steps."""
    return _Division(program, plan, Form(plan.distance, double)).result()


class _Division:
    def __init__(self, program: Program, plan: Plan, form: Form) -> None:
        self._steps, self._program, self._plan = program.steps, program, plan
        self._form = form
        self._level: dict[int, int] = {}
        self._region: dict[int, Region] = {}
        self._regions: list[Region] = []
        self._reasons: dict[int, str] = {}
        # Values with all pairs of positions that are needed at every displacement, and not only at
        # multiples of the strides that follow: averages and tensor operations take them.
        self._whole = {
            j
            for s in self._steps
            for j in s.inputs
            if plan.full[j] and s.operation.fused(form) is None  # type: ignore[union-attr]
        }

    def result(self) -> Partition:
        for i, step in enumerate(self._steps):
            if not isinstance(step.operation, Input):
                self._place(i)
        for region in list(self._regions):
            self._finish(region)
        regions = self._regions
        found: list[tuple[int, int, Region | int]] = [(r.level, r.steps[0], r) for r in regions]
        inside = {i for r in regions for i in r.steps}
        found += [(n, i, i) for i, n in self._level.items() if i not in inside]
        units = tuple(u for *_, u in sorted(found, key=lambda u: u[:2]))
        set_reaches(self._program, self._plan, units)
        return Partition(units, self._reasons)

    def _place(self, i: int) -> None:
        """Add a step to a region, or leave it as a single step."""
        taken = [j for j in self._steps[i].inputs if j in self._level]
        # What a region has summed over positions is there when the region is done.
        least = [self._level[j] + self._is_summed(j) for j in taken]
        base = max(least, default=0)
        if not self._collects(i) and not self._averages(i):
            found = self._fused(i)
            if isinstance(found, str):
                self._reasons[i] = found
                self._level[i] = base if base % 2 else base + 1
            else:
                self._join(i, found, base)

    def _is_summed(self, i: int) -> bool:
        return i in self._region and self._region[i].summed(i)

    def _collects(self, i: int) -> bool:
        step = self._steps[i]
        if len(step.inputs) != 1 or self._plan.full[i]:
            return False
        (j,) = step.inputs
        region = self._region.get(j)
        p, q = self._steps[j].positions
        factor = step.operation.collected(self._plan.full[j], p * q)  # type: ignore[union-attr]
        if factor is None or region is None or region.summed(j):
            return False
        if region.shape is Shape.VECTORS:
            return False
        region.collectors[i] = factor
        self._add(region, i)
        return True

    def _averages(self, i: int) -> bool:
        step = self._steps[i]
        region = self._region.get(step.inputs[0])
        if region is None or not region.full or region.summed(step.inputs[0]):
            return False
        found = windows(step.operation)  # type: ignore[arg-type]
        if isinstance(found, str):
            return False
        region.averages[i] = found
        self._add(region, i)
        return True

    def _fused(self, i: int) -> tuple[Fused, Shape] | str:
        step, plan = self._steps[i], self._plan
        assert not isinstance(step.operation, Input)
        fused = step.operation.fused(self._form)
        if fused is None:
            found = windows(step.operation)
            return found if isinstance(found, str) else "what it averages comes from no loop"
        if any(plan.full[j] != plan.full[i] for j in step.inputs):
            return "it takes the same position only of a value with all pairs of positions"
        if plan.full[i]:
            return fused, Shape.DISPLACEMENTS
        positions = {self._steps[j].positions for j in (i, *step.inputs)}
        if positions == {(1, 1)} and fused.taps is None:
            if not plan.distance:
                with_ = "dropout" if self._program.random_per_image else "averages over positions"
                return f"it takes vectors, in a network with {with_}"
            return fused, Shape.VECTORS
        return fused, Shape.SAME_POSITIONS

    def _join(self, i: int, found: tuple[Fused, Shape], base: int) -> None:
        fused, shape = found
        level = base if base % 2 == 0 else base + 1
        here = {
            id(r): r
            for j in self._steps[i].inputs
            if (r := self._region.get(j)) is not None and r.level == level
        }
        options = list(here.values())
        if not options:
            options = [r for r in self._regions if (r.level, r.shape) == (level, shape)][:1]
        if (
            len(options) == 1
            and options[0].shape is shape
            and not self._problem(options[0], i, fused)
        ):
            self._add(options[0], i, fused)
            return
        region = Region(shape, level + 2 if options else level)
        if why := self._problem(region, i, fused):
            self._reasons[i] = why
            self._level[i] = base if base % 2 else base + 1
            return
        self._regions.append(region)
        self._add(region, i, fused)

    def _add(self, region: Region, i: int, fused: Fused | None = None) -> None:
        region.steps.append(i)
        if fused is not None:
            region.fused[i] = fused
        self._region[i] = region
        self._level[i] = region.level

    def _problem(self, region: Region, i: int, fused: Fused) -> str:
        """Return why a step cannot be in a region, or an empty string."""
        if region.shape is Shape.VECTORS:
            return ""
        steps = [*(j for j in region.steps if not region.summed(j)), i]
        whole = sorted(self._whole.intersection(steps))
        try:
            lay_out(self._program, steps, {**region.fused, i: fused}, region.full, whole)
        except Unsuitable as error:
            return f"it has {error}"
        return ""

    def _finish(self, region: Region) -> None:
        """Find the inputs and outputs of a region; a region that has no layout is dissolved."""
        members = set(region.steps)
        taken = {j for i in members for j in self._steps[i].inputs} - members
        known = {j for j in taken if isinstance(self._steps[j].operation, Input)}
        users = {j for i, s in enumerate(self._steps) if i not in members for j in s.inputs}
        last = len(self._steps) - 1
        region.inputs = tuple(sorted(taken - known))
        region.outside = tuple(
            i for i in sorted(members) if (i in users or i == last) and not region.summed(i)
        )
        region.steps = sorted(members | known)
        if region.shape is Shape.VECTORS:
            if not known and not any(self._is_nonlinear(i) for i in members):
                self._give_up(region, members, "there is too little to do in this place")
            return
        steps = [i for i in region.steps if not region.summed(i)]
        whole = sorted({*region.outside, *self._whole.intersection(steps)})
        try:
            region.layout = lay_out(self._program, steps, region.fused, region.full, whole)
        except Unsuitable as error:
            self._give_up(region, members, f"it has {error}")

    def _is_nonlinear(self, i: int) -> bool:
        operation = self._steps[i].operation
        return not isinstance(operation, Input) and operation.needs_variances

    def _give_up(self, region: Region, members: set[int], reason: str) -> None:
        self._regions.remove(region)
        self._reasons.update(dict.fromkeys(members, reason))
