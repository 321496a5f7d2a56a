"""The largest displacements between positions whose covariances the result depends on.

After the last average of a network often only the same position in both images is needed. Before
it, the covariances of positions within a window are, and so on to the front: the displacements of
a region, each of which is a picture of its own, are then few of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..._program import Program
from .._plan import Plan
from ._packed import Pair
from ._region import Region


def set_reaches(program: Program, plan: Plan, units: Sequence[Region | int]) -> None:
    """Find which displacements of each region and of the values between regions are needed.

    Args:
        program: The network.
        plan: The form in which its values are computed.
        units: Regions and single steps in the order of their evaluation.
    """
    needed: dict[int, Pair] = {}
    alone: set[int] = set()

    def need(i: int, reach: Pair) -> None:
        p, q = program.steps[i].positions
        a, b = needed.get(i, (0, 0))
        needed[i] = max(a, min(reach[0], p - 1)), max(b, min(reach[1], q - 1))

    for unit in reversed(units):
        if isinstance(unit, int):
            for j in program.steps[unit].inputs:
                alone.add(j)
                if plan.full[j]:
                    need(j, program.steps[j].positions)
            continue
        if unit.layout is None:
            alone.update(unit.inputs)
            continue
        unit.reach = _reach(unit, needed) if unit.full else (0, 0)
        for j in unit.inputs:
            scale = unit.layout.places[j].scale
            need(j, (unit.reach[0] * scale[0], unit.reach[1] * scale[1]))
    for unit in units:
        if isinstance(unit, int) or unit.layout is None:
            continue
        made = (*unit.outside, *unit.averages)
        unit.kept = {i: needed.get(i, (0, 0)) for i in (*made, *unit.inputs)}
        last = len(program.steps) - 1
        unit.between = frozenset(i for i in made if i not in alone and i != last)


def _reach(region: Region, needed: dict[int, Pair]) -> Pair:
    """Return the largest displacement in a region that anything later depends on."""
    assert region.layout is not None
    p, q = region.layout.room
    if region.collectors:
        return p - 1, q - 1
    rows = [needed.get(i, (0, 0))[0] for i in region.outside]
    columns = [needed.get(i, (0, 0))[1] for i in region.outside]
    for i, (down, across) in region.averages.items():
        reach = needed.get(i, (0, 0))
        rows.append(down.reach(reach[0]))
        columns.append(across.reach(reach[1]))
    circles = region.layout.circles
    return (
        p - 1 if circles[0] else min(p - 1, max(rows, default=0)),
        q - 1 if circles[1] else min(q - 1, max(columns, default=0)),
    )
