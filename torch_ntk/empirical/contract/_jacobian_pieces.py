"""Jacobians that are contracted by blocks of columns, in a buffer that stays in the cache.

A kernel is the sum of products of column blocks, Θ = Σ_c J[:, c] J[:, c]ᵀ. So the whole Jacobian
need not be in memory: it is stored in pieces of consecutive samples, in another precision, or, if
these are smaller, as the features and cotangents of which it is the product,

    J[n, o, (b, a)] = Σ_t B[n, o, t, b] A[n, t, a].

Then the features are computed for one block of columns at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..._types import Output
from ...memory import even
from .._stages import stage
from ..rules import Use, laid_out, product
from ._piece_sizes import limited_size, piece_sizes

# Matrices whose size is no multiple are multiplied at up to a third less speed.
_MULTIPLE = 8
_MOST_BYTES = 256 * 1024**2


class Piece(ABC):
    """The Jacobian of some samples, which can write blocks of its columns.

    Columns are counted in steps, so that all pieces of a weight are divided in the same way.

    Attributes:
        like: A tensor with its dtype and device.
        samples, outputs: N and O.
        width: The number of steps.
        each: The number of columns in a step.
        least: The number of steps below which a block is slow.
    """

    like: Tensor
    samples: int
    outputs: int
    width: int
    each: int
    least: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.like.dtype

    @abstractmethod
    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Write the columns of the steps `start … stop` into `out` `[N, O, columns]`."""


class Formed(Piece):
    """A Jacobian `j` `[N, O, p]`."""

    def __init__(self, j: Tensor) -> None:
        self.like = self.j = j
        self.samples, self.outputs, self.width = j.shape
        self.each = self.least = 1

    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Copy the columns."""
        out.copy_(self.j[..., start:stop])


class Unformed(Piece):
    """A Jacobian as a product of matrices, for the calls of one weight.

    Args:
        b: The cotangents `[N, O, T, b]` of all calls, one after the other.
        calls: Each call and what is `held` of its input.
        scale: The number by which all columns are multiplied, or the numbers `[b, a]` for each.
        read: For a weight that is also an embedding: the rows that are read `[N, S]`, -1 where
            there is no gradient, and their cotangents `[N, O, S, a]`.
    """

    def __init__(
        self,
        b: Tensor,
        calls: Sequence[tuple[Use, Tensor]],
        scale: float | Tensor = 1.0,
        read: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        use = calls[0][0]
        self.samples, self.outputs = b.shape[:2]
        self._calls, self._scale, self._read = calls, scale, read
        features = use.inputs // use.steps
        self.like = self._b = laid_out(b)
        self.width, self.each = use.steps, b.shape[3] * features
        self.least = -(-piece_sizes(b.device).features // features)

    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Multiply the cotangents with some features."""
        found = [use.narrowed(held, start, stop).squeeze(1) for use, held in self._calls]
        a = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        shape = (self.samples, self.outputs, self._b.shape[3], a.shape[2])
        if out.dtype == self.dtype:
            product(self._b, a, out.view(shape))
        else:
            out.view(shape).copy_(product(self._b, a))
        if self._read is not None:
            rows, c = self._read[0][:, None, :, None], self._read[1][..., start:stop]
            where = rows.clamp(min=0).expand(c.shape)
            out.view(shape).scatter_add_(2, where, (c * (rows >= 0)).to(out.dtype))
        if isinstance(self._scale, Tensor):
            out.view(shape).mul_(self._calls[0][0].narrowed_entries(self._scale, start, stop))
        elif self._scale != 1.0:
            out.mul_(self._scale)


def laid(j: Tensor, output: Output) -> Tensor:
    """Return the Jacobian `[N, O, p]` as a stack of matrices whose products are the kernel.

    The stack is `[1, N·O, p]` for `"full"`, `[O, N, p]` for `"diagonal"`, and `[1, N, O·p]` if the
    outputs are summed: Σ_i ⟨J1[n, i], J2[m, i]⟩ is the product of Jacobians flattened over i.
    """
    n, o, p = j.shape
    if output == "full":
        return j.reshape(1, n * o, p)
    return j.transpose(0, 1) if output == "diagonal" else j.reshape(1, n, o * p)


def whole(pieces: Sequence[Piece], output: Output) -> Tensor:
    """Return all columns of formed pieces, in the layout of `laid`."""
    formed = [piece.j for piece in pieces if isinstance(piece, Formed)]
    assert len(formed) == len(pieces), "an unformed Jacobian is contracted by columns"
    return laid(formed[0] if len(formed) == 1 else torch.cat(formed), output)


def blocks(
    sides: Sequence[Sequence[Piece]], output: Output, dtype: torch.dtype
) -> Iterator[list[Tensor]]:
    """Yield blocks of columns of every side, `laid`, in `dtype`; the next block overwrites them.

    A side is the Jacobian of one weight for a set of samples, in pieces; there are one or two.
    """
    first = sides[0][0]
    if len(sides) == 1 == len(sides[0]) and isinstance(first, Formed) and first.dtype == dtype:
        yield [laid(first.j, output)]
        return
    heights = [sum(piece.samples for piece in side) for side in sides]
    o, each, width = first.outputs, first.each, first.width
    row = o * each * (torch.finfo(dtype).bits // 8)
    most = limited_size(piece_sizes(first.like.device).columns)
    step = _step(width, first.least, row * sum(heights), most)
    buffers = [first.like.new_empty(h * o * each * step, dtype=dtype) for h in heights]
    for start in range(0, width, step):
        stop = min(width, start + step)
        columns = each * (stop - start)
        found = []
        for side, height, buffer in zip(sides, heights, buffers, strict=True):
            out = buffer[: height * o * columns].view(height, o, columns)
            n = 0
            with stage("jacobian"):
                for piece in side:
                    piece.fill(out[n : n + piece.samples], start, stop)
                    n += piece.samples
            found.append(laid(out, output))
        yield found


def _step(width: int, least: int, size: int, columns: int) -> int:
    """Return how many of `width` steps of `size` bytes each fit in a block of `columns` bytes."""
    size = max(1, size)
    steps = max(columns // size, min(least, limited_size(_MOST_BYTES) // size), 1)
    if steps >= width:
        return max(1, width)
    if steps >= _MULTIPLE:
        steps -= steps % _MULTIPLE
    balanced = even(width, steps)
    return min(steps, -(-balanced // _MULTIPLE) * _MULTIPLE)
