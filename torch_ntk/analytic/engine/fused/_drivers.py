"""The code around the passes: over displacements, over pairs, and over pairs of vectors.

It is the same for all networks. A pass is called by its address, so that it is compiled alone.
"""

from __future__ import annotations

HEAD = '''"""The loops around the passes of infinitely wide networks, written by torch_ntk."""
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

R = np.float{bits}
loop = njit(nogil=True, error_model="numpy", fastmath={{"nsz", "contract", "arcp"}}, cache={cache})
total = njit(nogil=True, error_model="numpy", fastmath={{"nsz", "reassoc"}}, cache={cache})


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
@loop
def run(addresses, code, buffer, sums, numbers, first, second, masks, lo1, lo2, cut):
    for i in range(code.shape[0]):
        call(addresses[code[i, 0]], code[i, 1:].ctypes.data, buffer.ctypes.data, sums.ctypes.data,
             sums.shape[1], numbers.ctypes.data, first.ctypes.data, second.ctypes.data,
             masks.ctypes.data, lo1, lo2, cut)

"""

_IMAGES = """
@loop
def copy(inside, outside, table, inwards, room, margin, lo1, lo2, cut, dx, c1, c2, full):
    for s in range(table.shape[0]):
        p, q, s1, s2, wide = table[s, 4], table[s, 5], table[s, 6], table[s, 7], table[s, 8]
        d = s2 * dx
        for side in range(2):
            at, start = table[s, 0] + side * table[s, 1], table[s, 2 + side]
            for y in range(p - cut * s1):
                y1 = lo1 * s1 + y
                y2 = (lo2 * s1 + y) % p if c1 else lo2 * s1 + y
                o = at + y * wide
                if inwards:
                    for x in range(wide):
                        inside[o + x] = R(0.0)
                for x in range(q):
                    x2 = x + d
                    j = x
                    if c2:
                        x2 = x2 % q
                    elif x2 >= q:
                        x2 -= s2 * room
                        j = x + s2 * margin
                        if x2 < 0:
                            continue
                    i = start + ((y1 * q + x) * p + y2) * q + x2 if full else start + y1 * q + x
                    if inwards:
                        inside[o + j] = outside[i]
                    else:
                        outside[i] = inside[o + j]


@loop
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


@total
def sum_of(a, count):
    s = R(0.0)
    for j in range(count):
        s += a[j]
    return s


@loop
def collect(buffer, table, cut, totals):
    for s in range(table.shape[0]):
        at, half, wide = table[s, 0], table[s, 1], table[s, 4]
        for y in range(table[s, 2] - cut * table[s, 3]):
            totals[s, 0] += sum_of(buffer[at + y * wide:], wide)
            totals[s, 1] += sum_of(buffer[at + half + y * wide:], wide)


@loop
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

_DISPLACEMENTS = """
@loop
def displacements(
    begin, end, shape, addresses, code, same_code, numbers, pairs, one, two, terms, ones, masks,
    inputs, external, sources, collected, totals, stored, states, buffer, sums, first, second, mask,
):
    p, q, margin, c1, c2 = shape[0], shape[1], shape[2], shape[3], shape[4]
    plain, count = shape[5], shape[6]
    for task in range(begin, end):
        pair, dx = task // q, task % q
        same = pairs[pair, 2] and dx == 0
        fill(first[:plain], one[pairs[pair, 0]], terms[:count], q, margin, dx, 0, c1, c2)
        if same:
            fill(first, one[pairs[pair, 0]], terms, q, margin, dx, 0, c1, c2)
        fill(second, two[pairs[pair, 1]], terms[:count], q, margin, dx, 1, c1, c2)
        fill(mask, ones, masks, q, margin, dx, 0, c1, c2)
        for dy in range(0 if c1 else 1 - p, p):
            lo1 = max(0, -dy)
            lo2 = max(0, dy)
            cut = 0 if c1 else abs(dy)
            copy(buffer, external[pair], sources, True, q, margin, lo1, lo2, cut, dx, c1, c2, True)
            features(buffer, inputs, numbers, first, second, mask, lo1, lo2, cut, False)
            table = same_code if same and dy == 0 else code
            run(addresses, table, buffer, sums, numbers, first, second, mask, lo1, lo2, cut)
            collect(buffer, collected, cut, totals[task])
            copy(buffer, states[pair], stored, False, q, margin, lo1, lo2, cut, dx, c1, c2, True)
"""

_SAME_POSITIONS = """
@loop
def prepare(begin, end, shape, images, terms, to):
    for n in range(begin, end):
        fill(to[n], images[n], terms, shape[1], shape[2], 0, 0, 0, shape[4])


@loop
def same_positions(
    begin, end, shape, addresses, code, numbers, pairs, one, two, mask, inputs, external, sources,
    collected, totals, stored, states, buffer, sums,
):
    room, margin, c1, c2 = shape[1], shape[2], shape[3], shape[4]
    for pair in range(begin, end):
        first, second = one[pairs[pair, 0]], two[pairs[pair, 1]]
        copy(buffer, external[pair], sources, True, room, margin, 0, 0, 0, 0, c1, c2, False)
        features(buffer, inputs, numbers, first, second, mask, 0, 0, 0, True)
        run(addresses, code, buffer, sums, numbers, first, second, mask, 0, 0, 0)
        collect(buffer, collected, 0, totals[pair])
        copy(buffer, states[pair], stored, False, room, margin, 0, 0, 0, 0, c1, c2, False)
"""

_VECTORS = """
@loop
def products(tile, rows, at, channels, x1, x2, m, width):
    count = (width + 63) // 64 * 64
    for r in range(tile.shape[0]):
        to = tile[r]
        for j in range(count):
            to[j] = R(0.0)
    stop = at + channels
    whole = at + channels // 8 * 8
    # Eight channels at a time, which stay in the innermost cache for all rows of the tile.
    for n in range(at, whole, 8):
        b0, b1, b2, b3 = x2[n][m:], x2[n + 1][m:], x2[n + 2][m:], x2[n + 3][m:]
        b4, b5, b6, b7 = x2[n + 4][m:], x2[n + 5][m:], x2[n + 6][m:], x2[n + 7][m:]
        for r in range(0, tile.shape[0], 2):
            one, two = tile[r], tile[r + 1]
            a, c = x1[rows[r]], x1[rows[r + 1]]
            a0, a1, a2, a3 = a[n], a[n + 1], a[n + 2], a[n + 3]
            a4, a5, a6, a7 = a[n + 4], a[n + 5], a[n + 6], a[n + 7]
            c0, c1, c2, c3 = c[n], c[n + 1], c[n + 2], c[n + 3]
            c4, c5, c6, c7 = c[n + 4], c[n + 5], c[n + 6], c[n + 7]
            for j in range(count):
                s = one[j] + a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j]
                one[j] = s + a4 * b4[j] + a5 * b5[j] + a6 * b6[j] + a7 * b7[j]
                t = two[j] + c0 * b0[j] + c1 * b1[j] + c2 * b2[j] + c3 * b3[j]
                two[j] = t + c4 * b4[j] + c5 * b5[j] + c6 * b6[j] + c7 * b7[j]
    for n in range(whole, stop):
        b0 = x2[n][m:]
        for r in range(tile.shape[0]):
            to, a0 = tile[r], x1[rows[r], n]
            for j in range(count):
                to[j] += a0 * b0[j]


@loop
def squares(to, a, at, channels, x2, m, count, share):
    for j in range(count):
        to[j] = R(0.0)
    for n in range(at, at + channels):
        a0, b0 = a[n], x2[n][m:]
        for j in range(count):
            to[j] += (a0 - b0[j]) * (a0 - b0[j])
    for j in range(count):
        to[j] = to[j] * share


@loop
def distances(to, a, at, channels, x2, m, q1, q2, share, width, close):
    for j in range(width):
        to[j] = max((q1 + q2[j]) - (share + share) * to[j], R(0.0))
    for j in range(width):
        if to[j] < close * (q1 + q2[j]):
            d = R(0.0)
            for n in range(at, at + channels):
                d += (a[n] - x2[n, m + j]) * (a[n] - x2[n, m + j])
            to[j] = d * share


@loop
def vectors(
    begin, end, shape, addresses, code, numbers, starts, loads, x1, x2, one, two, ones, close,
    external, results, states, buffer, sums, tiles, rows,
):
    many, columns, lanes, few = shape[0], shape[1], shape[2], shape[3]
    for block in range(begin, end):
        low, high = block * 8, min(many, block * 8 + 8)
        for r in range(8):
            rows[r] = min(low + r, many - 1)
        for m in range(starts[low], columns, lanes):
            width = min(lanes, columns - m)
            count = (width + 63) // 64 * 64
            for i in range(loads.shape[0]):
                if loads[i, 0] and loads[i, 1] > few:
                    products(tiles[i], rows, loads[i, 2], loads[i, 1], x1, x2, m, width)
            for r in range(high - low):
                n = low + r
                if starts[n] >= m + width:
                    continue
                for i in range(loads.shape[0]):
                    c = loads[i]
                    k, t = buffer[c[3]:], buffer[c[3] + c[4]:]
                    if c[0]:
                        share, tile = numbers[c[5]], tiles[i, r]
                        if c[1] > few:
                            q1, q2 = one[n, c[6]], two[c[7] + m:]
                            distances(
                                tile, x1[n], c[2], c[1], x2, m, q1, q2, share, width, close
                            )
                        else:
                            squares(tile, x1[n], c[2], c[1], x2, m, count, share)
                        for j in range(width):
                            k[j] = tile[j]
                            t[j] = R(0.0)
                    else:
                        for j in range(width):
                            k[j] = external[c[1], 0, n, m + j]
                            t[j] = external[c[1], 1, n, m + j]
                cut = (lanes - count) // 64
                run(addresses, code, buffer, sums, numbers, one[n], two[m:], ones, 0, 0, cut)
                for s in range(results.shape[0]):
                    k, t = buffer[results[s, 0]:], buffer[results[s, 0] + results[s, 1]:]
                    for j in range(width):
                        states[s, 0, n, m + j] = k[j]
                        states[s, 1, n, m + j] = t[j]
"""

_AROUND = {
    "displacements": _IMAGES + _DISPLACEMENTS,
    "same_positions": _IMAGES + _SAME_POSITIONS,
    "vectors": _VECTORS,
}


def driver(name: str, double: bool) -> str:
    """The source of the loops around passes: `displacements`, `same_positions` or `vectors`."""
    return HEAD.format(bits=64 if double else 32, cache="{cache}") + _RUN + _AROUND[name]
