"""Add what one weight contributes to a block of the kernel, in the order that was planned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._types import Output
from ._columns import blocks
from ._gemm import add_times_transposed_
from ._grams import add_between_, add_grams_
from ._weights import Part


def add_(block: Tensor, p: Part, q: Part, output: Output) -> None:
    """Add a parameter's contribution between two blocks of samples; see `_outputs.zeros`.

    Factors of less precision than the block are converted to its own before they are multiplied.
    """
    if p.a is not None:
        add = add_between_ if p.between and output == "full" else add_grams_
        add(block, p, q, output)
        return
    n1, n2 = (s * p.outputs if output == "full" else s for s in (p.samples, q.samples))
    into = block if output == "diagonal" else block.view(1, n1, n2)
    for left, right in _jacobians(p, q, output, block.dtype):
        add_product_(into, left, right)


def _jacobians(
    p: Part, q: Part, output: Output, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Both Jacobians whole, or in blocks of columns where they are to be converted."""
    if p.pieces and q.pieces and p.pieces[0].dtype != dtype:
        sides = [p.pieces] if p is q else [p.pieces, q.pieces]
        yield from ((found[0], found[-1]) for found in blocks(sides, output, dtype))
        return
    left, right = p.whole(output).j, q.whole(output).j
    assert left is not None
    assert right is not None
    yield left, right


def add_product_(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ rightᵀ` of stacks of matrices to a stack of matrices."""
    if len(into) == 1:
        add_times_transposed_(into[0], left[0], right[0])
    else:
        into.baddbmm_(left, right.transpose(1, 2))
