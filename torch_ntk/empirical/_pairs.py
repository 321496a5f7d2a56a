"""A kernel from what is computed per sample, block of rows by block of columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._types import Output
from ._blocks import Backoff, ranges
from ._outputs import settled, shape, symmetrize_, transposed, zeros
from ._parts import Kernels, Keys, distinct
from ._weights import Part, add_

Factors = dict[tuple[str, str], Part]
"""By key and parameter name what is known of a block of samples; see `_weights`."""


def by_blocks(
    factors: Callable[[Tensor], Factors],
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
    """
    n1 = x1.shape[0]
    other = x1 if x2 is None else x2
    n2 = other.shape[0]
    like = torch.zeros((), dtype=dtype, device=x1.device)
    dims = shape(output, n1, n2, outputs)
    results = {key: like.new_zeros(dims) for key in distinct(keys)}
    backoff = Backoff(n1, size, within=small)

    def rows(start: int, stop: int) -> None:
        step = min(backoff.cut(small), stop - start)
        left = _joined([factors(x1[a:b]) for a, b in ranges(start, stop, step)])
        if x2 is None:
            for key, result in results.items():
                block = zeros(output, stop - start, stop - start, outputs, like)
                for name, part in left.items():
                    if name[0] == key:
                        add_(block, part, part, output)
                square = result[start:stop, start:stop]
                square.copy_(settled(block, output))
                symmetrize_(square)
        for a, b in ranges(stop if x2 is None else 0, n2, step):
            right = factors(other[a:b])
            for key, result in results.items():
                block = zeros(output, stop - start, b - a, outputs, like)
                for name, part in left.items():
                    if name[0] == key:
                        add_(block, part, right.pop(name), output)
                result[start:stop, a:b] = settled(block, output)
                if x2 is None:
                    result[a:b, start:stop] = transposed(result[start:stop, a:b])
        advance(stop - start)

    backoff.run(rows)
    return results


def _joined(blocks: list[Factors]) -> Factors:
    """Factors of consecutive blocks of samples as those of one block; empties `blocks`."""
    if len(blocks) == 1:
        return blocks[0]
    return {name: _cat([block.pop(name) for block in blocks]) for name in list(blocks[0])}


def _cat(parts: list[Part]) -> Part:
    def cat(tensors: list[Tensor | None]) -> Tensor | None:
        present = [t for t in tensors if t is not None]
        return torch.cat(present) if present else None

    return Part(
        j=cat([p.j for p in parts]),
        a=cat([p.a for p in parts]),
        b=cat([p.b for p in parts]),
        use=parts[0].use,
    )
