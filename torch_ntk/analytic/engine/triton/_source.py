"""Source code of a kernel: the passes of a region over one image after the other.

As on a CPU, what differs between passes of one kind stands in a row of integers, so that layers of
one kind share their code. Entries of an image go through a pass in blocks; a filter reads its taps
from memory, with zeros or positions of the image in place of what is outside. All threads meet
after each pass. The sums of a series stay in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..fused import TOGETHER, Assembly, Pass, Place, Stage
from ._formulas import translated

_COLUMNS = {
    False: """\
_x0 = _x - _s2 * margin
_after = (_d > 0) & (_x0 >= tl.maximum(0, _s2 * room - _d)) & (_x0 < _q)
_valid = _inside & ((_x < _q - _d) | _after)
_x1 = tl.where(_after, _x0, _x)
_x2 = tl.where(_after, _x0 + _d - _s2 * room, _x + _d)""",
    True: """\
_after = _x < 0
_valid = _inside & (_x < _q)
_x1 = _x
_x2 = around(_x + _d, _q)""",
}
_ROWS = {
    False: "_y2 = lo2 * _s1 + _y",
    True: "_y2 = around(lo2 * _s1 + _y, _rows)",
}


def _positions(circles: tuple[bool, bool]) -> list[str]:
    """Statements about the entries `_j` of a value; see `fused/_layout.py`.

    They assign row and column in its layout, whether there is anything, whether it belongs to the
    second displacement of two that share an image, and at which positions of the first and second
    image it is. On an axis that closes in a circle the second one begins again.
    """
    lines = ["_y = _j // _width", "_x = _j % _width", "_inside = _y < _rows"]
    lines += [*_COLUMNS[circles[1]].split("\n"), _ROWS[circles[0]]]
    return [*lines, "_i1 = (lo1 * _s1 + _y) * _q + _x1", "_i2 = _y2 * _q + _x2"]


_GIVEN = "buffer, numbers, first, second, lo1, lo2, cut, dx, room, margin"

_HEAD = '''"""A kernel of an infinitely wide network, written by torch_ntk."""
import triton
import triton.language as tl


@triton.jit
def power_of_two(n):
    return ((n.to(tl.int{bits}) + {bias}) << {mantissa}).to(tl.float{bits}, bitcast=True)


@triton.jit
def around(at, size):
    return tl.where(at < size, at, at - size)


@triton.jit
def features(row, buffer, numbers, first, second, lo1, lo2, cut, dx, room, margin,
             DISTANCE: tl.constexpr, BLOCK: tl.constexpr):
    _rows = tl.load(row) - cut * tl.load(row + 1)
    _q, _s1, _s2, _width = tl.load(row + 2), tl.load(row + 1), tl.load(row + 3), tl.load(row + 4)
    out, half = buffer + tl.load(row + 5), tl.load(row + 6)
    channels, start, apart = tl.load(row + 7), tl.load(row + 8), tl.load(row + 9)
    share = tl.load(numbers + tl.load(row + 10))
    _d = _s2 * dx
    for _j0 in range(0, _rows * _width, BLOCK):
        _j = _j0 + tl.arange(0, BLOCK)
{positions}
        k = tl.zeros([BLOCK], tl.float{bits})
        for c in range(0, channels):
            a = tl.load(first + start + c * apart + _i1, mask=_valid, other=0.0)
            b = tl.load(second + start + c * apart + _i2, mask=_valid, other=0.0)
            k += (a - b) * (a - b) if DISTANCE else a * b
        tl.store(out + _j, k * share, mask=_inside)
        tl.store(out + half + _j, k * 0.0, mask=_inside)


@triton.jit
def number_of(displacement, size, count):
    # Of the pictures that are kept, which has this displacement; see fused/_packed.py. -1 for none.
    n = tl.where(displacement >= 0, displacement, displacement + size)
    most = (count - 1) // 2
    last = tl.where(n >= size - most, n - (size - count), -1)
    return tl.where((count == size) | (n <= most), n, last)


@triton.jit
def copy(row, buffer, outside, lo1, lo2, cut, dx, room, margin,
         INWARDS: tl.constexpr, BLOCK: tl.constexpr):
    _p, _q, _s1, _s2 = tl.load(row), tl.load(row + 2), tl.load(row + 1), tl.load(row + 3)
    _rows, _width = _p - cut * _s1, tl.load(row + 4)
    at, half = buffer + tl.load(row + 5), tl.load(row + 6)
    start, entries = outside + tl.load(row + 7), tl.load(row + 8)
    rows_n, columns_n = tl.load(row + 9), tl.load(row + 10)
    _d = _s2 * dx
    r = number_of(_s1 * (lo2 - lo1), _p, rows_n)
    before, behind = number_of(_d, _q, columns_n), number_of(_d - _s2 * room, _q, columns_n)
    for _j0 in range(0, _rows * _width, BLOCK):
        _j = _j0 + tl.arange(0, BLOCK)
{positions}
        c = tl.where(_after, behind, before)
        there = _valid & (r >= 0) & (c >= 0)
        o = (r * columns_n + c) * _p * _q + _i1
        if INWARDS:
            tl.store(at + _j, tl.load(start + o, mask=there, other=0.0), mask=_inside)
            t = tl.load(start + entries + o, mask=there, other=0.0)
            tl.store(at + half + _j, t, mask=_inside)
        else:
            tl.store(start + o, tl.load(at + _j, mask=there, other=0.0), mask=there)
            t = tl.load(at + half + _j, mask=there, other=0.0)
            tl.store(start + entries + o, t, mask=there)


'''

_KERNEL = """
@triton.jit
def kernel(buffers, shape, numbers, pairs, ones, twos, columns, sources, external, inputs, code,
           same_code, collected, totals, stored, outputs, averaged, scratch,
           FULL: tl.constexpr, DISTANCE: tl.constexpr, BLOCK: tl.constexpr):
    tasks, size, terms, width = (tl.load(shape), tl.load(shape + 1), tl.load(shape + 2),
                                 tl.load(shape + 3))
    sources_n, external_n, inputs_n = tl.load(shape + 4), tl.load(shape + 5), tl.load(shape + 6)
    passes, collectors = tl.load(shape + 7), tl.load(shape + 8)
    stored_n, outputs_n = tl.load(shape + 9), tl.load(shape + 10)
    averaged_n, scratch_n = tl.load(shape + 11), tl.load(shape + 12)
    columns_n, rows_n, above = tl.load(shape + 13), tl.load(shape + 14), tl.load(shape + 15)
    room, margin = tl.load(shape + 16), tl.load(shape + 17)
    buffer = buffers + tl.program_id(0).to(tl.int64) * size
    for turn in range(0, tl.cdiv(tasks - tl.program_id(0), tl.num_programs(0))):
        task = tl.program_id(0) + turn * tl.num_programs(0)
        if FULL:
            pair = task // (columns_n * rows_n)
            dx = tl.load(columns + task // rows_n % columns_n)
            dy = task % rows_n - above
        else:
            pair, dx, dy = task, 0, 0
        lo1, lo2, cut = tl.maximum(0, -dy), tl.maximum(0, dy), {cut}
        first = ones + tl.load(pairs + 3 * pair).to(tl.int64) * terms
        second = twos + tl.load(pairs + 3 * pair + 1).to(tl.int64) * terms
        same = (tl.load(pairs + 3 * pair + 2) != 0) & (dx == 0) & (dy == 0)
        for i in range(0, sources_n):
            copy(sources + 11 * i, buffer, external + pair.to(tl.int64) * external_n, lo1, lo2,
                 cut, dx, room, margin, True, BLOCK)
        for i in range(0, inputs_n):
            features(inputs + 11 * i, buffer, numbers, first, second, lo1, lo2, cut, dx, room,
                     margin, DISTANCE, BLOCK)
        tl.debug_barrier()
        for i in range(0, passes):
            row = code + i * width
            if same:
                row = same_code + i * width
            kind = tl.load(row)
{calls}
            tl.debug_barrier()
        for s in range(0, collectors):
            c = collected + 5 * s
            at, half = buffer + tl.load(c), tl.load(c + 1)
            count = (tl.load(c + 2) - cut * tl.load(c + 3)) * tl.load(c + 4)
            k, t = tl.zeros([BLOCK], tl.float{bits}), tl.zeros([BLOCK], tl.float{bits})
            for j0 in range(0, count, BLOCK):
                j = j0 + tl.arange(0, BLOCK)
                k += tl.load(at + j, mask=j < count, other=0.0)
                t += tl.load(at + half + j, mask=j < count, other=0.0)
            to = totals + (task.to(tl.int64) * collectors + s) * 2
            tl.store(to, tl.sum(k, 0))
            tl.store(to + 1, tl.sum(t, 0))
        for i in range(0, stored_n):
            copy(stored + 11 * i, buffer, outputs + pair.to(tl.int64) * outputs_n, lo1, lo2, cut,
                 dx, room, margin, False, BLOCK)
        for i in range(0, averaged_n):
            copy(averaged + 11 * i, buffer, scratch + pair.to(tl.int64) * scratch_n, lo1, lo2, cut,
                 dx, room, margin, False, BLOCK)
        tl.debug_barrier()
"""


@dataclass(frozen=True)
class Source:
    """A kernel.

    Attributes:
        text: Its code.
        rows: Per pass the number of its code and its integers.
        same: The same for equal images at displacement 0.
    """

    text: str
    rows: list[list[int]]
    same: list[list[int]]


@dataclass
class _Writer:
    """Lines before a loop over entries and in it, and the integers of a row."""

    head: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    tables: dict[int, list[int]] = field(default_factory=dict)

    def integer(self, value: int) -> str:
        self.row.append(int(value))
        return f"tl.load(row + {len(self.row) - 1})"

    def table(self, values: list[int]) -> str:
        """Where in the row several integers begin, after all others."""
        self.tables[len(self.row)] = values
        return self.integer(0)

    def whole_row(self) -> list[int]:
        """The integers, with those of tables at the end."""
        row = [*self.row]
        for at, values in self.tables.items():
            row[at] = len(row)
            row += values
        return row


class _Kernel:
    def __init__(self, assembly: Assembly, starts: dict[int, int], double: bool) -> None:
        layout = assembly.region.layout
        assert layout is not None
        self._layout, self._positions = layout, _positions(layout.circles)
        self._starts, self._double = starts, double
        self._formulas: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        table = [[self._pass(p) for p in both] for both in assembly.passes]
        width = max((len(r) for both in table for r in both), default=1)
        rows, same = ([b[n] + [0] * (width - len(b[n])) for b in table] for n in (0, 1))
        bits, bias, mantissa = (64, 1023, 52) if double else (32, 127, 23)
        calls = "\n".join(
            _indented([f"if kind == {n}:", f"    pass_{n}(row + 1, {_GIVEN}, BLOCK)"], 3)
            for n in self._kinds.values()
        )
        head = _HEAD.format(
            bits=bits, bias=bias, mantissa=mantissa, positions=_indented(self._positions, 2)
        )
        formulas = [f"@triton.jit\ndef formula_{n}{s}\n" for s, n in self._formulas.items()]
        passes = [f"@triton.jit\ndef pass_{n}{s}\n" for s, n in self._kinds.items()]
        cut = "0" if layout.circles[0] else "tl.abs(dy)"
        kernel = _KERNEL.format(calls=calls, bits=bits, cut=cut)
        text = head + "\n\n".join([*formulas, *passes]) + kernel
        self.source = Source(text, rows, same)

    def _pass(self, p: Pass) -> list[int]:
        """The row of a pass."""
        w = _Writer()
        place, to = p.to.place, p.to
        w.head += [
            f"_rows = {w.integer(place.positions[0])} - cut * {w.integer(place.scale[0])}",
            f"_q = {w.integer(place.positions[1])}",
            f"_s1 = {w.integer(place.scale[0])}",
            f"_s2 = {w.integer(place.scale[1])}",
            f"_width = {w.integer(place.width)}",
            f"_out = buffer + {w.integer(to.origin)}",
            f"_half = {w.integer(to.half)}",
            "_d = _s2 * dx",
        ]
        self._filter(w, p)
        for n, stage in enumerate(p.stages):
            self._stage(w, stage, n, place)
        lines = [
            *w.head,
            "for _j0 in range(0, _rows * _width, BLOCK):",
            "    _j = _j0 + tl.arange(0, BLOCK)",
            *("    " + line for line in (*self._positions, *w.inside)),
            "    tl.store(_out + _j, tl.where(_valid, k, 0.0), mask=_inside)",
            "    tl.store(_out + _half + _j, tl.where(_valid, t, 0.0), mask=_inside)",
        ]
        body = f"(row, {_GIVEN}, BLOCK: tl.constexpr):\n{_indented(lines, 1)}\n"
        return [self._kinds.setdefault(body, len(self._kinds)), *w.whole_row()]

    def _filter(self, w: _Writer, p: Pass) -> None:
        """The sums over the taps as `k0` and `t0`."""
        if p.read is None:
            return
        slot, taps = p.read
        bits = 64 if self._double else 32
        w.head += [
            f"_at = buffer + {w.integer(slot.origin)}",
            f"_half_in = {w.integer(slot.half)}",
            f"_wide = {w.integer(slot.place.width)}",
            f"_there = {w.integer(slot.place.positions[0])} - "
            f"cut * {w.integer(slot.place.scale[0])}",
            f"_down = {w.integer(taps.rows.stride)}",
            f"_right = {w.integer(taps.columns.stride)}",
        ]
        w.inside += [f"{of}0 = tl.zeros([BLOCK], tl.float{bits})" for of in "kt"]
        # Columns first: all rows read the same ones.
        columns = self._read(w, 1, "_right * _x", p)
        w.inside += [f"_rx{n} = {at}" for n, at in enumerate(columns)]
        for at in self._read(w, 0, "_down * _y", p):
            w.inside += [
                f"_ry = {at}",
                "_line = _at + _ry * _wide",
                "_reads = _inside & (_ry >= 0) & (_ry < _there)",
            ]
            for n in range(len(columns)):
                there = f"_reads & (_rx{n} >= 0)" if self._layout.bordered else "_reads"
                w.inside += [
                    f"k0 += tl.load(_line + _rx{n}, mask={there}, other=0.0)",
                    f"t0 += tl.load(_line + _rx{n} + _half_in, mask={there}, other=0.0)",
                ]

    def _read(self, w: _Writer, axis: int, start: str, p: Pass) -> list[str]:
        """Which rows or columns the taps read, from where the first position reads on.

        Where there are borders, these are the positions that they show, and -1 for zeros. On an
        axis that closes in a circle the result has `size / stride` positions, so that taps at
        shifts below `size` go around once at most.
        """
        assert p.read is not None
        slot, filters = p.read
        taps, size = filters[axis], slot.place.positions[axis]
        if self._layout.circles[axis]:
            w.head.append(f"_size{axis} = {w.integer(size)}")
            found = []
            for n, shift in enumerate(taps.shifts):
                w.head.append(f"_shift{axis}_{n} = {w.integer(shift % size)}")
                found.append(f"around({start} + _shift{axis}_{n}, _size{axis})")
            return found
        if not self._layout.bordered:
            return [f"{start} + ({shift})" for shift in taps.shifts]
        low = min(taps.shifts, default=0)
        high = taps.stride * (p.to.place.positions[axis] - 1) + max(taps.shifts, default=0)
        shown = dict(taps.borders)
        reads = [at if 0 <= at < size else shown.get(at, -1) for at in range(low, high + 1)]
        w.head.append(f"_shown{axis} = row + {w.table(reads)}")
        return [
            f"tl.load(_shown{axis} + {start} + {shift - low}, mask=_valid, other=-1)"
            for shift in taps.shifts
        ]

    def _stage(self, w: _Writer, stage: Stage, n: int, place: Place) -> None:
        given: list[str] = []
        values: list[str] = []
        for i, slot in enumerate(stage.inputs):
            given += [f"k{i}", f"t{i}"]
            if slot is None:
                values += ["k", "t"] if n else ["k0", "t0"]  # what the pass has, or the filter
                continue
            w.head += [
                f"in{n}_{i} = buffer + {w.integer(slot.origin)}",
                f"half{n}_{i} = {w.integer(slot.half)}",
            ]
            values += [
                f"tl.load(in{n}_{i} + _j, mask=_inside, other=0.0)",
                f"tl.load(in{n}_{i} + half{n}_{i} + _j, mask=_inside, other=0.0)",
            ]
        for i in range(len(stage.formula.numbers)):
            given.append(f"p{i}")
            w.head.append(f"p{n}_{i} = tl.load(numbers + {w.integer(stage.numbers + i)})")
            values.append(f"p{n}_{i}")
        for i, starts in enumerate(stage.terms):
            given += [f"a{i}", f"b{i}"]
            for name, image, at, start in zip(
                "ab", ("first", "second"), ("_i1", "_i2"), starts, strict=True
            ):
                w.head.append(f"{name}{n}_{i} = {image} + {w.integer(self._starts[start])}")
                values.append(f"tl.load({name}{n}_{i} + {at}, mask=_valid, other=0.0)")
        if stage.series is not None:
            self._series(w, stage, n, place, dict(zip(given, values, strict=True)))
            given, values = [*given, "value", "slope"], [*values, "value", "slope"]
        call = self._function(given, values, stage.formula.lines, "k, t")
        w.inside.append(f"k, t = {call}")

    def _series(
        self, w: _Writer, stage: Stage, n: int, place: Place, given: dict[str, str]
    ) -> None:
        """The sum over coefficients and its derivative, as `value` and `slope`.

        With y = c², `S = c A(y) + y B(y)` and `S' = A + 2y A' + 2c (B + y B')` by Horner's rule for
        A, of the odd coefficients, and for B, of the even ones.
        """
        series, of = stage.series, stage.formula.series
        assert series is not None
        assert of is not None
        bits = 64 if self._double else 32
        names, values = list(given), list(given.values())
        for name, image, start in zip("ab", ("first", "second"), series.starts, strict=True):
            w.head.append(f"{name}{n} = {image} + {w.integer(self._starts[start])}")
        counts = [w.integer(TOGETHER * g) for g in series.groups]
        w.head += [
            f"apart{n} = {w.integer(math.prod(place.positions))}",
            f"odd{n} = {counts[0]}",
            f"even{n} = {counts[1]}",
        ]
        w.inside += [f"c = {self._function(names, values, of.before, 'c')}", "y = c * c"]
        for first, last in (("0", f"odd{n}"), (f"odd{n}", f"odd{n} + even{n}")):
            w.inside += [
                f"s, d = tl.zeros([BLOCK], tl.float{bits}), tl.zeros([BLOCK], tl.float{bits})",
                f"for i in range({first}, {last}):",
                f"    a = tl.load(a{n} + i * apart{n} + _i1, mask=_valid, other=0.0)",
                f"    b = tl.load(b{n} + i * apart{n} + _i2, mask=_valid, other=0.0)",
                "    d = d * y + s",
                "    s = s * y + a * b",
                *(
                    ["value = c * s", "slope = s + 2.0 * (y * d)"]
                    if first == "0"
                    else ["value += y * s", "slope += 2.0 * (c * (s + y * d))"]
                ),
            ]
        around = [*names, "c", "value", "slope"], [*values, "c", "value", "slope"]
        w.inside.append(f"value, slope = {self._function(*around, of.after, 'value, slope')}")

    def _function(
        self, names: list[str], values: list[str], lines: tuple[str, ...], result: str
    ) -> str:
        """A call of a function of its own for statements, which every pass that has them shares."""
        body = "\n".join([*translated(lines, self._double), f"return {result}"])
        written = f"({', '.join(names)}):\n{_indented(body.splitlines(), 1)}\n"
        number = self._formulas.setdefault(written, len(self._formulas))
        return f"formula_{number}({', '.join(values)})"


def _indented(lines: Sequence[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)


def source(assembly: Assembly, starts: dict[int, int], double: bool) -> Source:
    """The kernel of a region of images.

    Args:
        assembly: Its passes, of which none writes where it reads other entries.
        starts: Where terms begin in those of an image, by their `start`.
        double: Whether numbers are float64; float32 otherwise.
    """
    return _Kernel(assembly, starts, double).source
