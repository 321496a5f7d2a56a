"""Jacobians that are contracted by blocks of columns, in a buffer that stays in the cache.

A kernel is the sum of products of column blocks, Θ = Σ_c J[:, c] J[:, c]ᵀ, so a Jacobian need not
stand in memory as a whole: it is left in pieces of consecutive samples, in another precision, or
even unformed, as the features and cotangents whose product it is,

    J[n, o, (b, a)] = Σ_t B[n, o, t, b] A[n, t, a],

where these are smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Output
from ._blocks import even

_BYTES = 8 * 1024**2  # of a block of columns


@dataclass(frozen=True)
class Formed:
    """The Jacobian `[N, O, p]` of some samples."""

    j: Tensor

    @property
    def samples(self) -> int:
        """N."""
        return self.j.shape[0]

    @property
    def outputs(self) -> int:
        """O."""
        return self.j.shape[1]

    @property
    def width(self) -> int:
        """How many steps of columns there are: p."""
        return self.j.shape[2]

    @property
    def each(self) -> int:
        """Columns in a step."""
        return 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.j.dtype

    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Write the steps `start … stop` of columns into `out` `[N, O, columns]`."""
        out.copy_(self.j[..., start:stop])


@dataclass(frozen=True)
class Unformed:
    """The Jacobian `[N, O, b·a]` of some samples as a product of matrices.

    Attributes:
        left: Cotangents `[N, O·b, T]`.
        right: Features `[N, T, a]`.
        outputs: O.
    """

    left: Tensor
    right: Tensor
    outputs: int

    @property
    def samples(self) -> int:
        """N."""
        return self.left.shape[0]

    @property
    def width(self) -> int:
        """How many steps of columns there are: a."""
        return self.right.shape[2]

    @property
    def each(self) -> int:
        """Columns in a step: b."""
        return self.left.shape[1] // self.outputs

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.left.dtype

    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Write the steps `start … stop` of columns into `out` `[N, O, columns]`."""
        shape = (self.samples, self.left.shape[1], stop - start)
        right = self.right[..., start:stop]
        if out.dtype == self.dtype:
            torch.bmm(self.left, right, out=out.view(shape))
        else:
            out.view(shape).copy_(torch.bmm(self.left, right))


Piece = Formed | Unformed


def laid(j: Tensor, output: Output) -> Tensor:
    """The Jacobian `[N, O, p]` as a stack of matrices whose products are the kernel.

    That is `[1, N·O, p]` for `"full"`, `[O, N, p]` for `"diagonal"`, and `[1, N, O·p]` where the
    outputs are summed: Σ_i ⟨J1[n, i], J2[m, i]⟩ is the product of the Jacobians flattened over i.
    """
    n, o, p = j.shape
    if output == "full":
        return j.reshape(1, n * o, p)
    return j.transpose(0, 1) if output == "diagonal" else j.reshape(1, n, o * p)


def whole(pieces: Sequence[Piece], output: Output) -> Tensor:
    """All columns of formed pieces, `laid`."""
    formed = [piece.j for piece in pieces if isinstance(piece, Formed)]
    assert len(formed) == len(pieces), "an unformed Jacobian is contracted by columns"
    return laid(formed[0] if len(formed) == 1 else torch.cat(formed), output)


def blocks(
    sides: Sequence[Sequence[Piece]], output: Output, dtype: torch.dtype
) -> Iterator[list[Tensor]]:
    """Blocks of columns of every side, `laid`, in `dtype`; valid until the next one is asked for.

    Args:
        sides: Jacobians of the same weights for different samples, in pieces.
        output: The kernel's output.
        dtype: Precision of the products.
    """
    first = sides[0][0]
    if len(sides) == 1 == len(sides[0]) and isinstance(first, Formed) and first.dtype == dtype:
        yield [laid(first.j, output)]
        return
    heights = [sum(piece.samples for piece in side) for side in sides]
    o, each, width = first.outputs, first.each, first.width
    row = o * each * (torch.finfo(dtype).bits // 8)
    step = max(1, even(width, max(1, _BYTES // max(1, row * max(heights)))))
    like = first.j if isinstance(first, Formed) else first.left
    buffers = [like.new_empty(h * o * each * step, dtype=dtype) for h in heights]
    for start in range(0, width, step):
        stop = min(width, start + step)
        columns = each * (stop - start)
        found = []
        for side, height, buffer in zip(sides, heights, buffers, strict=True):
            out = buffer[: height * o * columns].view(height, o, columns)
            n = 0
            for piece in side:
                piece.fill(out[n : n + piece.samples], start, stop)
                n += piece.samples
            found.append(laid(out, output))
        yield found
