"""Source code of the passes of a network: loops over one image each, in plain Python for Numba.

What differs between passes of one kind, such as where their values are, stands in `row`, a row of
integers. So all layers of one kind share their code, whatever the depth, and so do networks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ....activations import Formula
from ._layout import ROUND, Filter, Layout, Place

TOGETHER = 4
"""Coefficients of a series that are summed at once; their numbers are multiples of it."""
SERIES_BLOCK = 256
"""Entries for which this is done before the next."""
SERIES_ROOM = 6 * SERIES_BLOCK
"""Numbers that are kept of them in the meantime."""

# Without a sign: else each index could count from the end, and a loop would have no vectors.
_ENTRY = "j = np.uint64(start + i)"

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

HEAD = '''"""One pass of an infinitely wide network, written by torch_ntk."""
import math

import numpy as np
from numba import carray, cfunc, njit, types

R = np.float{bits}
sqrt, floor = math.sqrt, math.floor
FLAGS = {{"error_model": "numpy", "fastmath": {{"nsz", "contract", "arcp", "nnan"}}}}
I, P, N = types.int64, types.CPointer(types.float{bits}), 1 << 40
SIGNATURE = types.void(types.CPointer(I), P, P, I, P, P, P, P, I, I, I)


@njit(**FLAGS)
def power_of_two(n):
    biased = np.int{bits}(n) + np.int{bits}({bias})
    return np.int{bits}(biased << np.int{bits}({mantissa})).view(R)


@cfunc(SIGNATURE, cache={cache}, **FLAGS)
def run(row_, buffer_, sums_, apart, numbers_, first_, second_, masks_, lo1, lo2, cut):
    row, buffer, numbers = carray(row_, N), carray(buffer_, N), carray(numbers_, N)
    first, second, masks = carray(first_, N), carray(second_, N), carray(masks_, N)
    k_sum = carray(sums_, N)
    t_sum = k_sum[apart:]
'''
"""Before the body of a pass. It is called with the addresses of its row of integers, of the values
of all steps, of room for the sums of a filter (those of Θ lie `apart`), of the numbers of formulas,
of the terms of both images, and of the masks; and with where the image begins in the rows of either
image, at scale 1, and how many rows less than these it has."""


@dataclass(frozen=True)
class Slot:
    """The memory of a value: covariances from `origin` on, the tangent kernel `half` later."""

    place: Place
    start: int

    @property
    def origin(self) -> int:
        """The place of the entry in the first row and column."""
        return self.start + self.place.above

    @property
    def half(self) -> int:
        """The distance from a covariance to its tangent kernel."""
        return self.place.length


@dataclass(frozen=True)
class Coefficients:
    """The places of the coefficients of a series among the terms of images.

    Attributes:
        starts: Where they begin in the terms of the first and of the second image.
        steps: The distances from one coefficient to the next in these terms.
        groups: The numbers of groups of `TOGETHER` coefficients with odd j, and with even j.
    """

    starts: tuple[int, int]
    steps: tuple[int, int]
    groups: tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """One formula that a pass evaluates.

    Attributes:
        formula: The formula.
        inputs: The slot of each input; None stands for the result of the pass so far.
        numbers: The index of its first number among those of all formulas.
        terms: Where each of its terms begins in the terms of the first and of the second image.
        series: The places of the coefficients, if the formula has a series.
    """

    formula: Formula
    inputs: tuple[Slot | None, ...]
    numbers: int
    terms: tuple[tuple[int, int], ...]
    series: Coefficients | None = None


@dataclass(frozen=True)
class Pass:
    """One loop over an image: a filter, if there is one, and formulas one after the other.

    Attributes:
        read: The slot that is filtered, and the filter; None without a filter.
        stages: The formulas in their order.
        to: The slot of the result.
        mask: The index at which the mask of the result begins among all masks.
    """

    read: tuple[Slot, Filter] | None
    stages: tuple[Stage, ...]
    to: Slot
    mask: int


@dataclass
class _Writer:
    """Lines of a function, and the integers that stand in its row."""

    lines: list[str] = field(default_factory=list)
    row: list[int] = field(default_factory=list)

    def __call__(self, *lines: str, depth: int = 1) -> None:
        self.lines += ["    " * depth + line for line in lines]

    def integer(self, value: int) -> str:
        self.row.append(value)
        return f"row[{len(self.row) - 1}]"


Written = tuple[str, list[int]]
"""The body of a pass, and its row of integers."""


class Code(NamedTuple):
    """The passes of a region for loops.

    Attributes:
        sources: The different sources of passes.
        rows: For each pass, the number of its source and then its integers.
        same: The same rows for the passes for equal images at displacement 0.
    """

    sources: list[str]
    rows: Integers
    same: Integers


def code(layout: Layout | None, passes: Sequence[tuple[Pass, Pass]], double: bool) -> Code:
    """The code of passes: for different images, and for equal ones at displacement 0.

    Args:
        layout: The layout of the region; None for vectors, of which the first image has one number
            for each term.
        passes: The passes in their order, each for different and for equal images.
        double: Whether numbers are float64; float32 otherwise.
    """
    kinds: dict[str, int] = {}
    rows: list[list[int]] = []
    for one in (p for both in passes for p in both):
        body, row = _written(layout, one)
        rows.append([kinds.setdefault(body, len(kinds)), *row])
    width = max((len(r) for r in rows), default=1)
    table = np.array([r + [0] * (width - len(r)) for r in rows], dtype=np.int64)
    table = table.reshape(len(rows), width)
    return Code([module(body, double) for body in kinds], table[::2].copy(), table[1::2].copy())


def _written(layout: Layout | None, p: Pass) -> Written:
    w = _Writer()
    place = p.to.place
    w(
        f"rows = {w.integer(place.positions[0])} - cut * {w.integer(place.scale[0])}",
        "if rows <= 0:",
        "    return",
        f"width = {w.integer(place.width)}",
        f"count = (rows * width + {ROUND - 1}) // {ROUND} * {ROUND}",
        f"skip1 = lo1 * {w.integer(place.scale[0])} * width",
        f"skip2 = lo2 * {w.integer(place.scale[0])} * width",
        f"mask = masks[{w.integer(p.mask)}:]",
    )
    inside: list[str] = []
    if p.read is not None:
        assert layout is not None
        inside += _filtered(w, layout, *p.read)
    at, half = w.integer(p.to.origin), w.integer(p.to.half)
    w(f"k_out = buffer[{at}:]", f"t_out = buffer[{at} + {half}:]")
    out = ["k_out[j] = k * mask[j]", "t_out[j] = t * mask[j]"]
    if layout is not None and layout.bordered:
        # In the margins formulas get what filters put there, and any number may result.
        out = [f"{of}_out[j] = {of} if mask[j] > R(0.0) else R(0.0)" for of in "kt"]
    if p.stages[0].series is not None:
        _with_series(w, p.stages[0], out, vectors=layout is None)
        return "\n".join(w.lines), w.row
    for n, stage in enumerate(p.stages):
        inside += [*_stage(w, stage, n, vectors=layout is None), *_typed(stage.formula.lines)]
    w("for j in range(count):")
    w(*inside, *out, depth=2)
    return "\n".join(w.lines), w.row


def _stage(w: _Writer, stage: Stage, n: int, vectors: bool) -> list[str]:
    inside = []
    for i, slot in enumerate(stage.inputs):
        if slot is None:
            if n:  # the first one has k0, t0 from the filter
                inside += [f"k{i} = k", f"t{i} = t"]
            continue
        at, half = w.integer(slot.origin), w.integer(slot.half)
        w(f"k{n}_{i} = buffer[{at}:]", f"t{n}_{i} = buffer[{at} + {half}:]")
        inside += [f"k{i} = k{n}_{i}[j]", f"t{i} = t{n}_{i}[j]"]
    if stage.formula.numbers:
        at = w.integer(stage.numbers)
        for i in range(len(stage.formula.numbers)):
            w(f"p{n}_{i} = numbers[{at} + {i}]")
            inside.append(f"p{i} = p{n}_{i}")
    for i, (one, two) in enumerate(stage.terms):
        if vectors:
            w(f"a{n}_{i} = first[{w.integer(one)}]")
            inside.append(f"a{i} = a{n}_{i}")
        else:
            w(f"a{n}_{i} = first[{w.integer(one)} + skip1:]")
            inside.append(f"a{i} = a{n}_{i}[j]")
        w(f"b{n}_{i} = second[{w.integer(two)} + skip2:]")
        inside.append(f"b{i} = b{n}_{i}[j]")
    return inside


def _typed(lines: Sequence[str]) -> list[str]:
    return [typed(line) for line in lines]


def _with_series(w: _Writer, stage: Stage, out: list[str], vectors: bool) -> None:
    """Write a formula with a series in blocks of entries, since the sums of all need memory.

    With y = c², `S = c A(y) + y B(y)` and `S' = A + 2y A' + 2c (B + y B')` by Horner's rule for A,
    of the odd coefficients, and for B, of the even ones. What is there of a block in `k_sum`: c
    and y, a sum and its derivative, the value and the slope.
    """
    given, series = _stage(w, stage, 0, vectors), stage.series
    assert series is not None
    assert stage.formula.series is not None
    names = ("c_", "y_", "p_", "d_", "value_", "slope_")
    w(*(f"{name} = k_sum[{SERIES_BLOCK * n}:]" for n, name in enumerate(names)))
    for side, start, step in zip((1, 2), series.starts, series.steps, strict=True):
        w(f"step{side} = {w.integer(step)}")
        skip = "" if vectors else f" + skip{side}"
        w(f"begin{side} = {w.integer(start)}{skip}")
    odd, even = (w.integer(g) for g in series.groups)
    w(f"for start in range(0, count, {SERIES_BLOCK}):")
    w(f"size = min({SERIES_BLOCK}, count - start)", depth=2)
    w("for i in range(size):", depth=2)
    nothing = ["p_[i] = R(0.0)", "d_[i] = R(0.0)"]
    w(_ENTRY, *given, *_typed(stage.formula.series.before), depth=3)
    w("c_[i] = c", "y_[i] = c * c", *nothing, depth=3)
    at1 = "begin1" if vectors else "begin1 + start"
    w(f"at1 = {at1}", "at2 = begin2 + start", depth=2)
    _horner(w, odd, vectors)
    w("for i in range(size):", depth=2)
    w("value_[i] = c_[i] * p_[i]", "slope_[i] = p_[i] + R(2.0) * (y_[i] * d_[i])", depth=3)
    w(*nothing, depth=3)
    _horner(w, even, vectors)
    w("for i in range(size):", depth=2)
    w(_ENTRY, *given, "c = c_[i]", depth=3)
    w("value = value_[i] + y_[i] * p_[i]", depth=3)
    w("slope = slope_[i] + R(2.0) * (c * (p_[i] + y_[i] * d_[i]))", depth=3)
    w(*_typed(stage.formula.series.after), depth=3)
    w("value_[i] = value", "slope_[i] = slope", "for i in range(size):", depth=3)
    w.lines[-1] = w.lines[-1][4:]
    w(_ENTRY, *given, "value, slope = value_[i], slope_[i]", depth=3)
    w(*_typed(stage.formula.lines), *out, depth=3)


def _horner(w: _Writer, groups: str, vectors: bool) -> None:
    """Write a Horner scheme for several coefficients at once, whose sums stay in registers."""
    w(f"for g in range({groups}):", depth=2)
    for n in range(TOGETHER):
        first = f"first[at1 + {n} * step1{']' if vectors else ':]'}"
        w(f"a{n} = {first}", f"b{n} = second[at2 + {n} * step2:]", depth=3)
    w("for i in range(size):", depth=3)
    w("y, p, d = y_[i], p_[i], d_[i]", depth=4)
    for n in range(TOGETHER):
        a = f"a{n}" if vectors else f"a{n}[i]"
        w("d = d * y + p", f"p = p * y + {a} * b{n}[i]", depth=4)
    w("p_[i] = p", "d_[i] = d", depth=4)
    w(f"at1 += {TOGETHER} * step1", f"at2 += {TOGETHER} * step2", depth=3)


@lru_cache(maxsize=1024)
def typed(line: str) -> str:
    """Return a statement in which every number has the floating type of the loop."""
    return re.sub(r"(?<![\w.])(\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+)", r"R(\1)", line)


def _filtered(w: _Writer, layout: Layout, slot: Slot, taps: Filter) -> list[str]:
    """Fill the margins of what is read; the sums over the taps as `k0` and `t0`."""
    place = slot.place
    rows, columns = taps.rows.shifts, taps.columns.shifts
    if not rows or not columns:
        return ["k0 = R(0.0)", "t0 = R(0.0)"]
    w(
        f"at = {w.integer(slot.origin)}",
        f"half = {w.integer(slot.half)}",
        f"wide = {w.integer(place.width)}",
        f"there = max({w.integer(place.positions[0])} - cut * {w.integer(place.scale[0])}, 0)",
        f"top = {w.integer(min(rows))}",
        f"last = (rows - 1) * {w.integer(taps.rows.stride)} + {w.integer(max(rows))}",
        f"side = {w.integer(place.scale[1] * layout.margin)}",
    )
    _margins(w, layout, place, taps)
    if taps.strides != (1, 1):
        return _strided(w, taps)
    if len(rows) == 1 or len(columns) == 1:
        pairs = [f"{w.integer(r)} * wide + {w.integer(c)}" for r in rows for c in columns]
        for n, offset in enumerate(pairs):
            w(f"k_{n} = buffer[at + {offset}:]", f"t_{n} = buffer[at + half + {offset}:]")
        return [_sum(of, len(pairs)) for of in "kt"]
    w(f"across = ((last - top + 1) * wide + {ROUND - 1}) // {ROUND} * {ROUND}")
    for n, c in enumerate(columns):
        shift = w.integer(c)
        w(f"k_{n} = buffer[at + top * wide + {shift}:]")
        w(f"t_{n} = buffer[at + half + top * wide + {shift}:]")
    w("for j in range(across):")
    for of in "kt":
        w(_sum(of, len(columns)).replace(f"{of}0 =", f"{of}_sum[j] ="), depth=2)
    for n, r in enumerate(rows):
        shift = w.integer(r)
        w(f"k_{n} = k_sum[({shift} - top) * wide:]", f"t_{n} = t_sum[({shift} - top) * wide:]")
    return [_sum(of, len(rows)) for of in "kt"]


def _margins(w: _Writer, layout: Layout, place: Place, taps: Filter) -> None:
    """Write the statements that fill the margins: with zeros, or with positions of the image."""
    w("for o in (at, at + half):")
    if layout.bordered:
        _borders(w, taps)
        return
    if layout.circles[1]:
        across = w.integer(place.positions[1])
        w(
            "for y in range(there):",
            "    m = o + y * wide",
            "    for i in range(side):",
            f"        buffer[m - 1 - i] = buffer[m + {across} - 1 - i]",
            f"        buffer[m + {across} + i] = buffer[m + i]",
            depth=2,
        )
    if layout.circles[0]:
        w(
            "for y in range(top, 0):",
            "    to, other = buffer[o + y * wide - side:], buffer[o + (y + there) * wide - side:]",
            "    for j in range(wide):",
            "        to[j] = other[j]",
            "for y in range(there, last + 1):",
            "    to, other = buffer[o + y * wide - side:], buffer[o + (y - there) * wide - side:]",
            "    for j in range(wide):",
            "        to[j] = other[j]",
            depth=2,
        )
    else:
        w(
            # From there on: an index that could count from the end has no vectors.
            "below = buffer[o + there * wide:]",
            "for j in range((last + 1 - there) * wide + side):",
            "    below[j] = R(0.0)",
            depth=2,
        )


def _borders(w: _Writer, taps: Filter) -> None:
    """Write the statements that copy columns of every row, then whole rows, by integer tables."""
    columns, rows = taps.columns.borders, taps.rows.borders
    c = len(w.row)
    r = c + 2 * len(columns)
    w.row += [n for both in (*columns, *rows) for n in both]
    w(
        "for y in range(there):",
        "    m = o + y * wide",
        f"    for i in range({c}, {r}, 2):",
        "        shown = row[i + 1]",
        "        buffer[m + row[i]] = buffer[m + shown] if shown >= 0 else R(0.0)",
        f"for i in range({r}, {len(w.row)}, 2):",
        "    to, shown = buffer[o + row[i] * wide - side:], row[i + 1]",
        "    other = buffer[o + max(shown, 0) * wide - side:]",
        "    for j in range(wide):",
        "        to[j] = other[j] if shown >= 0 else R(0.0)",
        depth=2,
    )


def _sum(of: str, count: int) -> str:
    return f"{of}0 = " + " + ".join(f"{of}_{n}[j]" for n in range(count))


def _strided(w: _Writer, taps: Filter) -> list[str]:
    """Row by row, as what is read does not lie as what is made does."""
    pairs = [(w.integer(r), w.integer(c)) for r in taps.rows.shifts for c in taps.columns.shifts]
    down, right = w.integer(taps.rows.stride), w.integer(taps.columns.stride)
    w("for y in range(rows):")
    w("k_row = k_sum[y * width:]", "t_row = t_sum[y * width:]", depth=2)
    for n, (r, c) in enumerate(pairs):
        w(f"o = at + ({down} * y + {r}) * wide + {c}", depth=2)
        w(f"k_{n} = buffer[o:]", f"t_{n} = buffer[o + half:]", depth=2)
    w("for x in range(width):", f"    i = {right} * x", depth=2)
    for of in "kt":
        total = " + ".join(f"{of}_{n}[i]" for n in range(len(pairs)))
        w(f"{of}_row[x] = {total}", depth=3)
    return ["k0 = k_sum[j]", "t0 = t_sum[j]"]


def module(body: str, double: bool) -> str:
    """The source of a pass of its own."""
    bits, bias, mantissa = (64, 1023, 52) if double else (32, 127, 23)
    return HEAD.format(bits=bits, bias=bias, mantissa=mantissa, cache="{cache}") + body + "\n"
