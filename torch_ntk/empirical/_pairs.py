"""A kernel from what is computed per sample, block of rows by block of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._types import Output
from ..memory import Backoff, even, ranges
from ._columns import blocks
from ._contract import add_, add_product_
from ._outputs import mirror_, settled, shape, transposed, zeros
from ._parts import Kernels, Keys, distinct
from ._pieces import pieces
from ._stages import stage
from ._weights import Part

_MOST_BLOCKS = 8  # the saving of more is small

Factors = dict[tuple[str, str], Part]
"""By key and parameter name what is known of a block of samples; see `_weights`."""


def by_blocks(
    factors: Callable[[Tensor, bool], Factors],
    x1: Tensor,
    x2: Tensor | None,
    output: Output,
    outputs: int,
    dtype: torch.dtype,
    size: int,
    small: int,
    advance: Callable[[int], None],
    keys: Keys,
) -> Kernels:
    """The kernels `Θ(x1, x2)`, or the exactly symmetric `Θ(x1, x1)` if `x2` is None.

    Rows are taken in blocks of `size` whose factors are kept, and columns are streamed past them
    in blocks of `small`, so that the factors of a sample are computed about N/(2·size) + 1 times.
    `factors` is told whether its samples meet only those of their own block: then a Jacobian is
    contracted once, and need not be formed before.
    """
    n1 = x1.shape[0]
    other = x1 if x2 is None else x2
    n2 = other.shape[0]
    like = torch.zeros((), dtype=dtype, device=x1.device)
    dims = shape(output, n1, n2, outputs)
    results = {key: like.new_zeros(dims) for key in distinct(keys)}
    backoff = Backoff(n1, size, within=small)

    def rows(start: int, stop: int) -> None:
        step = even(stop - start, backoff.cut(small))
        alone = x2 is None and (start, stop) == (0, n1)
        left = _joined([factors(x1[a:b], alone) for a, b in ranges(start, stop, step)])
        left = {name: part.factors_in(dtype) for name, part in left.items()}
        if not alone:
            left = {name: part.ready(dtype, output) for name, part in left.items()}
        if x2 is None:
            for key, result in results.items():
                parts = [part for name, part in left.items() if name[0] == key]
                with stage("products"):
                    _add_square(result[start:stop, start:stop], parts, output, outputs)
        for a, b in ranges(stop if x2 is None else 0, n2, step):
            right = factors(other[a:b], False)
            for key, result in results.items():
                block = zeros(output, stop - start, b - a, outputs, like)
                with stage("products"):
                    for name, part in left.items():
                        if name[0] == key:
                            add_(block, part, right.pop(name), output)
                    result[start:stop, a:b] = settled(block, output)
                if x2 is None:
                    result[a:b, start:stop] = transposed(result[start:stop, a:b])
        advance(stop - start)

    backoff.run(rows)
    return results


def _add_square(square: Tensor, parts: list[Part], output: Output, outputs: int) -> None:
    """Write the kernel of some samples among themselves, of which half is computed.

    Row after row of blocks: from the diagonal to the right, all contributions while the block is
    in the cache, then mirrored. Parts with many positions have many rows for a sample, and are
    divided further.
    """
    n = square.shape[0]
    rows = outputs if output == "full" else 1
    # What is made for one weight at a time and not kept is contracted first, and all at once.
    passing = [part for part in parts if part.pieces or part.sources]
    kept = [part for part in parts if not (part.pieces or part.sources)]
    strips = list(ranges(0, n, _samples(n, rows, pieces(square.device).rows, _blocks(parts))))
    total = zeros(output, n, n, outputs, square) if passing else None
    for part in passing:
        assert total is not None
        _add_passing(total, part, strips, output)
    for a, b in strips:
        if total is None:
            block = zeros(output, b - a, n - a, outputs, square)
        else:
            block = _strip(total, a, b, output)
        for part in kept:
            _add_strip(block, part, a, b, output)
        mirror_(block, b - a, output)
        square[a:b, a:] = settled(block, output)
        square[b:, a:b] = transposed(square[a:b, b:])


def _add_passing(total: Tensor, part: Part, strips: list[tuple[int, int]], output: Output) -> None:
    """Add a part of which features or columns of the Jacobian are made here, and go with it."""
    if part.pieces:
        n, rows = part.samples, part.outputs if output == "full" else 1
        matrices = total if output == "diagonal" else total.view(1, n * rows, n * rows)
        for (j,) in blocks([part.pieces], output, total.dtype):
            for a, b in ((a * rows, b * rows) for a, b in strips):
                add_product_(matrices[:, a:b, a:], j[:, a:b], j[:, a:])
        return
    gathered = part.gathered(total.dtype)
    for a, b in strips:
        _add_strip(_strip(total, a, b, output), gathered, a, b, output)


def _strip(total: Tensor, a: int, b: int, output: Output) -> Tensor:
    """The samples `a … b` by `a …` of a block; see `_outputs.zeros`."""
    first, second = (1, 2) if output == "diagonal" else (0, 2 if output == "full" else 1)
    return total.narrow(first, a, b - a).narrow(second, a, total.shape[second] - a)


def _add_strip(block: Tensor, part: Part, a: int, b: int, output: Output) -> None:
    """Add a part between the samples `a … b` and `a …`, from the diagonal to the right."""
    n = part.samples
    rows = part.outputs if output == "full" else 1
    size = pieces(block.device)
    step = _samples(n, rows * part.positions, size.rows, _blocks([part]))
    if part.between:
        step = _samples(n, part.positions, size.tall, _MOST_BLOCKS)
    for c, d in ranges(a, b, min(b - a, step)):
        if d - c == n:
            add_(block, part, part, output)
        else:
            below = _strip(block, c - a, d - a, output)
            add_(below, part.narrow(c, d), part.narrow(c, n), output)


def _blocks(parts: Sequence[Part]) -> int:
    """In how many blocks of rows all products take the least time.

    Of the M multiplications of a product, k blocks of rows leave (1 + 1/k) M / 2 and set up k
    products, each worth c multiplications: the least is at k² = M / (2 c).
    """
    if not parts:
        return 1
    total = sum(part.multiplications for part in parts)
    overhead = pieces(parts[0].device).overhead * len(parts)
    return max(1, min(_MOST_BLOCKS, round(math.sqrt(total / (2 * overhead)))))


def _samples(n: int, rows: int, least: int, most: int) -> int:
    """Samples in a block, of `n` with so many rows each, of which `least` are worth it."""
    return max(-(-least // rows), -(-n // most))


def _joined(found: list[Factors]) -> Factors:
    """Factors of consecutive blocks of samples as those of one block; empties `found`."""
    if len(found) == 1:
        return found[0]
    names = list(found[0])
    return {name: Part.joined([block.pop(name) for block in found]) for name in names}
