"""How values between positions are laid out in memory for fused loops.

Under a convolution of stride 1 an entry (p, p') moves together with (p + a, p' + a): the
displacement p' - p never changes. So the `P × Q × P × Q` array of a pair of images is a set of
independent images, one for each displacement, and each goes through *all* layers while it is in the
innermost cache. With a stride s the displacement d of the output is that of s d in the input.

An image is one line of numbers, row after row, so that a tap of a filter is a constant distance in
it and a loop over it is long. Between rows there are zeros, `margin` of them, which the taps at
the borders read. Displacements dx and dx - Q share an image, of Q - dx and of dx columns:

    | x = 0 … Q-dx-1, x' = x + dx | zeros | x = Q-dx … Q-1, x' = x + dx - Q | zeros |

Rows are not shared: the displacement dy has P - |dy| of them. This keeps exactly P² Q² entries,
next to the zeros. On an axis that closes in a circle there are no zeros. The margins show the other
side of the image, and images of dy and dy - P are one.

Networks of which only the same position in both images is needed are the displacement 0. Before a
filter reads them, its margins can show any positions: those of circular, reflected and replicated
borders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..._program import Program
from ...operations import Fused
from ._packed import Pair
from ._shifts import Shifts, shifts

ROUND = 64
"""Loops run over a multiple of so many entries: whatever the processor, no loop ends with single
ones, and all entries go through the same instructions."""


class Unsuitable(Exception):
    """Raised with the reason why some steps cannot have one layout."""


@dataclass(frozen=True)
class Place:
    """The layout of one value in memory.

    Attributes:
        positions: `(P, Q)`.
        scale: The product of the strides that follow, along either axis. A displacement of the last
            value is this many times as large in this one.
        width: Entries from one row to the next.
        above: Entries before the first row, which are 0 unless the axis closes in a circle.
        length: The number of all entries.
    """

    positions: Pair
    scale: Pair
    width: int
    above: int
    length: int


class Filter(NamedTuple):
    """The filters of a step along both axes."""

    rows: Shifts
    columns: Shifts

    @property
    def strides(self) -> Pair:
        """The distances between neighbouring outputs, in positions of the input."""
        return self.rows.stride, self.columns.stride


@dataclass(frozen=True)
class Layout:
    """The layout of some steps of a program.

    Attributes:
        full: Whether it is for all pairs of positions, and not only for equal positions.
        room: The numbers `(P, Q)` of displacements along either axis: the positions of a value
            divided by its scale, rounded up, for the value where this is largest.
        margin: The number of columns of zeros beside an image, at scale 1.
        circles: Whether each axis closes in a circle, in a layout of displacements.
        bordered: Whether each filter fills the margins that it reads, because some margins show
            positions of the image instead of zeros.
        places: The place of the value of each step.
        filters: The filter of each step that has one.
    """

    full: bool
    room: Pair
    margin: int
    circles: tuple[bool, bool]
    bordered: bool
    places: Mapping[int, Place]
    filters: Mapping[int, Filter]


def lay_out(
    program: Program,
    steps: Sequence[int],
    fused: Mapping[int, Fused],
    full: bool,
    whole: Sequence[int],
) -> Layout:
    """Return the layout of the values of some steps and of their inputs.

    Args:
        program: The network.
        steps: The numbers of the steps, in order.
        fused: The fused forms of those that have one; known features and sums have none.
        full: Whether the layout is for all pairs of positions.
        whole: The steps whose values are needed at every displacement, because averages over
            positions or steps after the loop take them.

    Raises:
        Unsuitable: The steps have no common layout; the message says why.
    """
    filters = _filters(fused, steps, full)
    scales = _scales(program, steps, filters, whole if full else ())
    values = {i: program.steps[i].positions for i in scales}
    room = (
        max(-(-p // scales[i][0]) for i, (p, _) in values.items()),
        max(-(-q // scales[i][1]) for i, (_, q) in values.items()),
    )
    circles = (
        full and any(f.rows.wraps for f in filters.values()),
        full and any(f.columns.wraps for f in filters.values()),
    )
    bordered = not full and not all(s.pads_with_zeros for f in filters.values() for s in f)
    for axis in (0, 1):
        if circles[axis] and not (
            all(values[i][axis] == scales[i][axis] * room[axis] for i in values)
            and all(f[axis].wraps or not any(f[axis].shifts) for f in filters.values())
        ):
            raise Unsuitable("circular padding beside other paddings or sizes")
    reach = _reach(program, filters, values, scales)
    margin = max((-(-r.columns // scales[i][1]) for i, r in reach.items()), default=0)
    places = {}
    for scale in set(scales.values()):
        those = [reach[i] for i in reach if scales[i] == scale]
        width = scale[1] * (room[1] + 2 * margin)
        above = max((r.above for r in those), default=0) * width + scale[1] * margin
        below = max((r.rows for r in those), default=0)
        rows = max(below, scale[0] * room[0]) + 1
        length = above + rows * width + scale[1] * margin + 2 * ROUND
        for i, s in scales.items():
            if s == scale:
                places[i] = Place(values[i], scale, width, above, length)
    return Layout(full, room, margin, circles, bordered, places, filters)


@dataclass
class _Reach:
    """How far filters read beyond a value: rows above, rows in all, columns at the sides."""

    above: int
    rows: int
    columns: int


def _filters(fused: Mapping[int, Fused], steps: Sequence[int], full: bool) -> dict[int, Filter]:
    found = {}
    for i in steps:
        if i not in fused or fused[i].taps is None:
            continue
        rows, columns = (shifts(t) for t in fused[i].taps)  # type: ignore[union-attr]
        if rows is None or columns is None:
            raise Unsuitable("taps at varying distances (transposed)")
        if full and not all(s.wraps or s.pads_with_zeros for s in (rows, columns)):
            raise Unsuitable(
                "reflected or replicated borders, or circular ones that change the number of "
                "positions: covariances at different displacements mix in them"
            )
        found[i] = Filter(rows, columns)
    return found


def _scales(
    program: Program,
    steps: Sequence[int],
    filters: Mapping[int, Filter],
    whole: Sequence[int],
) -> dict[int, Pair]:
    """Return the scale of every value; it is found from the last value to the first."""
    scales: dict[int, Pair] = dict.fromkeys(whole, (1, 1))
    for i in reversed(steps):
        scale = scales.setdefault(i, (1, 1))
        stride = filters[i].strides if i in filters else (1, 1)
        for j in program.steps[i].inputs:
            wanted = scale[0] * stride[0], scale[1] * stride[1]
            if scales.setdefault(j, wanted) != wanted:
                raise Unsuitable("strides that differ between branches")
    return scales


def _reach(
    program: Program,
    filters: Mapping[int, Filter],
    positions: Mapping[int, Pair],
    scales: Mapping[int, Pair],
) -> dict[int, _Reach]:
    found: dict[int, _Reach] = {}
    for i, f in filters.items():
        (j,) = program.steps[i].inputs
        r = found.setdefault(j, _Reach(0, 0, 0))
        rows = f.rows.shifts or (0,)
        r.above = max(r.above, -min(rows))
        last = (positions[i][0] - 1) * f.rows.stride + max(rows)
        r.rows = max(r.rows, last + 1)
        r.columns = max(r.columns, *(abs(s) for s in f.columns.shifts or (0,)))
        beyond = positions[j][1] - 1
        r.columns = max(r.columns, *(max(-e, e - beyond) for e, _ in f.columns.borders), 0)
    return found
