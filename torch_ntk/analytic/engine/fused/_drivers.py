"""The code around the passes: over displacements, over pairs, and over pairs of vectors.

It is the same for all networks. A pass is called by its address, so that it is compiled alone.

Users wait for Numba at their first call. So functions that only other loops call have no entry for
Python, and flags are variables: for each constant Numba would compile a function of its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

TOGETHER = 8
"""First vectors that go together; it is in the code below."""

HEAD = '''"""The loops around the passes of infinitely wide networks, written by torch_ntk."""
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

R = np.float{bits}
FLAGS = {{"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "cache": {cache}}}
FAST = {{"nsz", "contract", "arcp"}}
loop = njit(fastmath=FAST, **FLAGS)
# Only other loops call these.
part = njit(fastmath=FAST, no_cpython_wrapper=True, **FLAGS)
total = njit(fastmath={{"nsz", "reassoc"}}, no_cpython_wrapper=True, **FLAGS)


@intrinsic
def call(context, address, a, b, c, d, e, f, g, h, i, j, k):
    signature = types.void(*[types.int64] * 12)

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [integer] * 11).as_pointer()
        builder.call(builder.inttoptr(arguments[0], function), arguments[1:])
        return context.get_dummy_value()

    return signature, generate

'''

_RUN = """
@part
def run(addresses, code, buffer, sums, numbers, first, second, masks, lo1, lo2, cut):
    for i in range(code.shape[0]):
        call(addresses[code[i, 0]], code[i, 1:].ctypes.data, buffer.ctypes.data, sums.ctypes.data,
             sums.shape[1], numbers.ctypes.data, first.ctypes.data, second.ctypes.data,
             masks.ctypes.data, lo1, lo2, cut)

"""

_NUMBER = """
@part
def number_of(displacement, size, count):
    # Of the pictures that are kept, which has this displacement; see `_packed.py`. -1 for none.
    n = displacement if displacement >= 0 else displacement + size
    if count == size:
        return n
    most = (count - 1) // 2
    if n <= most:
        return n
    return n - (size - count) if n >= size - most else -1

"""

_IMAGES = """
@part
def copy(inside, outside, table, inwards, room, margin, lo1, lo2, cut, dx, c1, c2):
    for s in range(table.shape[0]):
        p, q, s1, s2, wide = table[s, 4], table[s, 5], table[s, 6], table[s, 7], table[s, 8]
        d = s2 * dx
        row = number_of(s1 * (lo2 - lo1), p, table[s, 9])
        for side in range(2):
            at, start = table[s, 0] + side * table[s, 1], table[s, 2 + side]
            if inwards:
                for j in range(at, at + (p - cut * s1) * wide):
                    inside[j] = R(0.0)
            # The displacement d, and beside it d - room.
            for after in range(1 if c2 else 2):
                column = number_of(d - after * s2 * room, q, table[s, 10])
                if row < 0 or column < 0:
                    continue
                low = max(0, s2 * room - d) if after else 0
                high = q if after or c2 else q - d
                shift = after * s2 * margin
                o = start + (row * table[s, 10] + column) * p * q
                for y in range(p - cut * s1):
                    i, j = o + (lo1 * s1 + y) * q, at + y * wide + shift
                    if inwards:
                        for x in range(low, high):
                            inside[j + x] = outside[i + x]
                    else:
                        for x in range(low, high):
                            outside[i + x] = inside[j + x]


@total
def sum_of(a, count):
    s = R(0.0)
    for j in range(count):
        s += a[j]
    return s


@part
def collect(buffer, table, cut, totals):
    for s in range(table.shape[0]):
        at, half, wide = table[s, 0], table[s, 1], table[s, 4]
        for y in range(table[s, 2] - cut * table[s, 3]):
            totals[s, 0] += sum_of(buffer[at + y * wide:], wide)
            totals[s, 1] += sum_of(buffer[at + half + y * wide:], wide)


@part
def features(buffer, table, numbers, first, second, masks, lo1, lo2, cut, distance):
    for s in range(table.shape[0]):
        c = table[s]
        rows = c[2] - cut * c[3]
        if rows <= 0:
            continue
        wide, channels, apart = c[4], c[5], c[7]
        count = (rows * wide + 63) // 64 * 64
        k, t = buffer[c[0]:], buffer[c[0] + c[1]:]
        share, mask = numbers[c[8]], masks[c[9]:]
        for j in range(count):
            k[j] = R(0.0)
            t[j] = R(0.0)
        for n in range(channels):
            a = first[c[6] + n * apart + lo1 * c[3] * wide:]
            b = second[c[6] + n * apart + lo2 * c[3] * wide:]
            if distance:
                for j in range(count):
                    k[j] += (a[j] - b[j]) * (a[j] - b[j])
            else:
                for j in range(count):
                    k[j] += a[j] * b[j]
        for j in range(count):
            k[j] = k[j] * share * mask[j]

"""

_AVERAGES = """
@part
def targets(where, share, counts, table, windows, weights, room, margin, dx, c2):
    # For each average what it does to a row of an image: entry where[0] is added, times share, to
    # the result where[1], of which there are as many for each displacement as results have.
    for s in range(table.shape[0]):
        c = table[s]
        q, many, nc, most, n = c[4], c[7], c[11], c[15], 0
        for after in range(2):
            e = dx - after * room
            for x in range(max(0, -e), min(q, q - e)):
                i, j = c[9] + most * x, c[9] + most * (x + e)
                for u in range(i, i + most):
                    for v in range(j, j + most):
                        a, b = windows[u], windows[v]
                        column = number_of(b - a, many, nc)
                        if a < 0 or b < 0 or column < 0:
                            continue
                        where[s, n, 0] = x if c2 else x + after * margin
                        where[s, n, 1] = column * c[6] * many + a
                        share[s, n] = weights[u] * weights[v]
                        n += 1
        counts[s] = n


@part
def add_rows(lines, buffer, table, windows, weights, lo1, dy):
    # The rows of an image with the displacement dy, to those of the results of averages.
    for s in range(table.shape[0]):
        c = table[s]
        p, wide, many, nr, most = c[12], c[5], c[6], c[10], c[14]
        for y in range(max(0, -dy), min(p, p - dy)):
            i, j = c[8] + most * y, c[8] + most * (y + dy)
            k, t = buffer[c[0] + (y - lo1) * wide:], buffer[c[0] + c[1] + (y - lo1) * wide:]
            for u in range(i, i + most):
                for v in range(j, j + most):
                    a, b = windows[u], windows[v]
                    row = number_of(b - a, many, nr)
                    if a < 0 or b < 0 or row < 0:
                        continue
                    w = weights[u] * weights[v]
                    k_line = lines[c[13] + (row * many + a) * wide:]
                    t_line = lines[c[13] + ((nr + row) * many + a) * wide:]
                    for x in range(wide):
                        k_line[x] += w * k[x]
                        t_line[x] += w * t[x]


@part
def add_columns(to, lines, table, where, share, counts):
    # What these rows have along columns, to the results.
    for s in range(table.shape[0]):
        c = table[s]
        wide, many, across, nr, nc = c[5], c[6], c[7], c[10], c[11]
        for half in range(2):
            for row in range(nr):
                for a in range(many):
                    line = lines[c[13] + ((half * nr + row) * many + a) * wide:]
                    at = c[2 + half] + (row * nc * many + a) * across
                    for n in range(counts[s]):
                        to[at + where[s, n, 1]] += share[s, n] * line[where[s, n, 0]]


"""

# Lines that end with this are left out where nothing is averaged, as they take long to compile.
_ONLY_WITH_AVERAGES = "  # averages"
_DISPLACEMENTS = """
@part
def fill(to, source, table, room, margin, dx, second, circle_rows, circle_columns):
    to[:] = R(0.0)
    for t in range(table.shape[0]):
        at, start, p, q = table[t, 0], table[t, 1], table[t, 2], table[t, 3]
        s2, wide = table[t, 4], table[t, 5]
        d = s2 * dx
        shift = d if second else 0
        for copy in range(2 if circle_rows else 1):
            for y in range(p):
                o = at + (copy * p + y) * wide
                i = start + y * q
                if circle_columns:
                    for x in range(q):
                        to[o + x] = source[i + (x + shift) % q]
                    continue
                for x in range(q - d):
                    to[o + x] = source[i + x + shift]
                if d:
                    for x in range(max(0, s2 * room - d), q):
                        to[o + x + s2 * margin] = source[i + (x + d - s2 * room if second else x)]


@loop
def displacements(
    begin, end, shape, columns, addresses, code, same_code, numbers, pairs, one, two, terms, ones,
    masks, inputs, external, sources, collected, totals, stored, averaged, windows, weights, states,
    buffer, sums, first, second, mask, lines,
):
    yes, no = np.int64(1), np.int64(0)
    p, q, margin, c1, c2 = shape[0], shape[1], shape[2], shape[3], shape[4]
    plain, count, reach, each, most = shape[5], shape[6], shape[7], shape[8], shape[9]
    parts = (len(columns) + each - 1) // each
    where = np.empty((len(averaged), most, 2), np.int64)  # averages
    share = np.empty((len(averaged), most), R)  # averages
    counts = np.empty(len(averaged), np.int64)  # averages
    for task in range(begin, end):
        pair, part = task // parts, task % parts
        for n in range(part * each, min(part * each + each, len(columns))):
            dx = columns[n]
            same = pairs[pair, 2] and dx == 0
            some = terms if same else terms[:count]
            fill(first, one[pairs[pair, 0]], some, q, margin, dx, no, c1, c2)
            fill(second, two[pairs[pair, 1]], terms[:count], q, margin, dx, yes, c1, c2)
            fill(mask, ones, masks, q, margin, dx, no, c1, c2)
            lines[:] = R(0.0)  # averages
            targets(where, share, counts, averaged, windows, weights, q, margin, dx, c2)  # averages
            for dy in range(0 if c1 else -reach, p if c1 else reach + 1):
                lo1 = max(0, -dy)
                lo2 = max(0, dy)
                cut = 0 if c1 else abs(dy)
                copy(buffer, external[pair], sources, yes, q, margin, lo1, lo2, cut, dx, c1, c2)
                features(buffer, inputs, numbers, first, second, mask, lo1, lo2, cut, False)
                table = same_code if same and dy == 0 else code
                run(addresses, table, buffer, sums, numbers, first, second, mask, lo1, lo2, cut)
                collect(buffer, collected, cut, totals[pair, n])
                for e in range(dy, dy - p - 1 if c1 else dy - 1, -p):  # averages
                    add_rows(lines, buffer, averaged, windows, weights, lo1, e)  # averages
                copy(buffer, states[pair], stored, no, q, margin, lo1, lo2, cut, dx, c1, c2)
            add_columns(states[pair], lines, averaged, where, share, counts)  # averages
"""

_SAME_POSITIONS = """
@loop
def same_positions(
    begin, end, shape, distance, addresses, code, same_code, numbers, pairs, one, two, mask, inputs,
    external, sources, collected, totals, stored, states, buffer, sums,
):
    yes, no = np.int64(1), np.int64(0)
    room, margin = shape[1], shape[2]
    for pair in range(begin, end):
        first, second = one[pairs[pair, 0]], two[pairs[pair, 1]]
        copy(buffer, external[pair], sources, yes, room, margin, 0, 0, 0, 0, 0, 0)
        features(buffer, inputs, numbers, first, second, mask, 0, 0, 0, distance)
        table = same_code if pairs[pair, 2] else code
        run(addresses, table, buffer, sums, numbers, first, second, mask, 0, 0, 0)
        collect(buffer, collected, 0, totals[pair, 0])
        copy(buffer, states[pair], stored, no, room, margin, 0, 0, 0, 0, 0, 0)
"""

_PRODUCT = """
@intrinsic
def product(context, to, a, b, count, to_row, a_row):
    # {rows} × {columns} sums over `count` channels of a[r, n] b[n, j], all of them in registers:
    # the compiler has no such loops of its own. Addresses, and entries from one row to the next.
    signature = types.void(*[types.int64] * 6)

    def generate(context, builder, signature, arguments):
        to, a, b, count, to_row, a_row = arguments
        number, integer = ir.{number}Type(), ir.IntType(64)
        vector = ir.VectorType(number, {lanes})
        name = "llvm.fmuladd.v{lanes}f{bits}"
        fma = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(vector, [vector] * 3), name
        )
        nothing = ir.Constant(vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(ir.IntType(32), {lanes}), [0] * {lanes})

        def place(base, at):
            return builder.gep(builder.inttoptr(base, number.as_pointer()), [at])

        def as_vector(at):
            return builder.bitcast(at, vector.as_pointer())

        def times(x, k):
            return builder.mul(x, ir.Constant(integer, k))

        before = builder.block
        body, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(body)
        builder.position_at_end(body)
        n = builder.phi(integer)
        n.add_incoming(ir.Constant(integer, 0), before)
        sums = [[builder.phi(vector) for _ in range({vectors})] for _ in range({rows})]
        at = times(n, {columns})
        columns = []
        for v in range({vectors}):
            columns.append(builder.load(as_vector(
                place(b, builder.add(at, ir.Constant(integer, v * {lanes}))))))
            columns[-1].align = {bits} // 8
        made = []
        for r in range({rows}):
            one = builder.load(place(a, builder.add(times(a_row, r), n)))
            one = builder.insert_element(nothing, one, ir.Constant(ir.IntType(32), 0))
            one = builder.shuffle_vector(one, nothing, first)
            made.append([builder.call(fma, [one, c, s]) for c, s in zip(columns, sums[r])])
        following = builder.add(n, ir.Constant(integer, 1))
        n.add_incoming(following, body)
        for r in range({rows}):
            for old, new in zip(sums[r], made[r]):
                old.add_incoming(ir.Constant(vector, [0.0] * {lanes}), before)
                old.add_incoming(new, body)
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        builder.position_at_end(after)
        for r in range({rows}):
            for v in range({vectors}):
                at = builder.add(times(to_row, r), ir.Constant(integer, v * {lanes}))
                builder.store(made[r][v], as_vector(place(to, at))).align = {bits} // 8
        return context.get_dummy_value()

    return signature, generate

"""

_VECTORS = """
@part
def squares(to, a, b, m, width, share):
    for start in range(0, width, {columns}):
        part, some = to[start:], b[(m + start) // {columns}]
        for j in range({columns}):
            part[j] = R(0.0)
        for n in range(a.shape[0]):
            a0, b0 = a[n], some[n]
            for j in range({columns}):
                part[j] += (a0 - b0[j]) * (a0 - b0[j])
        for j in range({columns}):
            part[j] = part[j] * share


@part
def distances(to, tile, a, b, m, q1, q2, share, width, close):
    near = 0
    for j in range(width):
        size = q1 + q2[j]
        to[j] = max(size - (share + share) * tile[j], R(0.0))
        near += to[j] < close * size
    if near == 0:
        return
    for j in range(width):
        if to[j] < close * (q1 + q2[j]):
            d, i = R(0.0), m + j
            for n in range(a.shape[0]):
                e = a[n] - b[i // {columns}, n, i % {columns}]
                d += e * e
            to[j] = d * share


@part
def covariances(to, d, q1, q2, width):
    # What is 0 in one image has a covariance of 0, without rounding.
    for j in range(width):
        nothing = (q1 == R(0.0)) | (q2[j] == R(0.0))
        to[j] = R(0.0) if nothing else R(0.5) * (q1 - d[j] + q2[j])


@loop
def vectors(
    begin, end, shape, addresses, code, numbers, starts, loads, x1, x2, one, two, ones, close,
    external, results, kernels, tangents, buffer, sums, tiles,
):
    many, columns, lanes, few = shape[0], shape[1], shape[2], shape[3]
    for edge in range(starts[begin * 8] // lanes * lanes, columns, lanes):
        for low in range(begin * 8, min(end * 8, many), 8):
            # The second vectors of a tile stay in a cache for all first ones.
            m = max(edge, starts[low] // {columns} * {columns})
            width = min(edge + lanes, columns) - m
            if width <= 0:
                continue
            count = (width + 63) // 64 * 64
            for i in range(loads.shape[0]):
                if loads[i, 0] and loads[i, 1] > few:
                    channels, at = loads[i, 1], loads[i, 2]
                    for r in range(0, 8, {rows}):
                        for j in range(0, width, {columns}):
                            product(
                                tiles[i, r, j:].ctypes.data, x1[low + r, at:].ctypes.data,
                                x2[(m + j) // {columns}, at].ctypes.data, channels,
                                tiles.shape[2], x1.shape[1],
                            )
            for n in range(low, min(many, low + 8)):
                if starts[n] >= m + width:
                    continue
                for i in range(loads.shape[0]):
                    c = loads[i]
                    k, t = buffer[c[3]:], buffer[c[3] + c[4]:]
                    if c[0]:
                        a, b = x1[n, c[2]:c[2] + c[1]], x2[:, c[2]:c[2] + c[1]]
                        share = numbers[c[5]]
                        if c[1] > few:
                            q1, q2 = one[n, c[6]], two[c[7] + m:]
                            distances(k, tiles[i, n - low], a, b, m, q1, q2, share, width, close)
                        else:
                            squares(k, a, b, m, width, share)
                        for j in range(width):
                            t[j] = R(0.0)
                    else:
                        for j in range(width):
                            k[j] = external[c[1], 0, n, m + j]
                            t[j] = external[c[1], 1, n, m + j]
                cut = (lanes - count) // 64
                run(addresses, code, buffer, sums, numbers, one[n], two[m:], ones, 0, 0, cut)
                for s in range(results.shape[0]):
                    c = results[s]
                    k, t = buffer[c[0]:], buffer[c[0] + c[1]:]
                    if c[2]:
                        q1, q2 = one[n, c[3]], two[c[4] + m:]
                        covariances(kernels[s, n, m:], k, q1, q2, width)
                    else:
                        for j in range(width):
                            kernels[s, n, m + j] = k[j]
                    for j in range(width):
                        tangents[s, n, m + j] = t[j]
"""

_AROUND = {
    "displacements": _IMAGES + _DISPLACEMENTS,
    "same_positions": _IMAGES + _SAME_POSITIONS,
    "vectors": _PRODUCT + _VECTORS,
}


class Tile(NamedTuple):
    """The sums of products that are in registers at once.

    Attributes:
        rows: The number of first vectors.
        vectors: The number of registers that hold second vectors.
        lanes: The number of entries of a register.
    """

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """The number of second vectors."""
        return self.vectors * self.lanes


@lru_cache(maxsize=2)
def tile(double: bool) -> Tile:
    """Return the largest tile that the registers of this processor hold, beside its factors."""
    from llvmlite import binding  # type: ignore[import-untyped]  # slow to import

    features = binding.get_host_cpu_features()
    size = 8 if double else 4
    if features.get("avx512f"):  # 32 registers
        return Tile(8, 3, 64 // size)
    return Tile(4, 3, (32 if features.get("avx") else 16) // size)


def driver(name: str, double: bool, *, averages: bool = False) -> str:
    """Return the source of the loops around passes.

    Args:
        name: `displacements`, `same_positions` or `vectors`.
        double: Whether numbers are float64; float32 otherwise.
        averages: Whether there are averages over some positions.
    """
    bits = 64 if double else 32
    around = (_AVERAGES if averages else "") + _AROUND[name]
    if not averages:
        lines = around.splitlines(keepends=True)
        around = "".join(s for s in lines if not s.rstrip().endswith(_ONLY_WITH_AVERAGES))
    if name == "vectors":
        t = tile(double)
        number = "Double" if double else "Float"
        around = around.format(**t._asdict(), columns=t.columns, number=number, bits=bits)
    else:
        around = _NUMBER + around
    return HEAD.format(bits=bits, cache="{cache}") + _RUN + around
