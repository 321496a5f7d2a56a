"""Jacobians that are contracted by blocks of columns, in a buffer that stays in the cache.

A kernel is the sum of products of column blocks, Θ = Σ_c J[:, c] J[:, c]ᵀ, so a Jacobian need not
stand in memory as a whole: it is left in pieces of consecutive samples, in another precision, or
even unformed, as the features and cotangents whose product it is,

    J[n, o, (b, a)] = Σ_t B[n, o, t, b] A[n, t, a],

where these are smaller. The features are then gathered for a block of columns at a time.
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

# Matrices of other sizes are multiplied at up to a third less speed.
_MULTIPLE = 8
_MOST_BYTES = 256 * 1024**2


class Piece(ABC):
    """The Jacobian of some samples, of which blocks of columns are asked for.

    Columns are counted in steps, so that every piece of a weight is divided alike.

    Attributes:
        like: A tensor of its kind.
        samples, outputs: N and O.
        width: How many steps of columns there are.
        each: Columns in a step.
        least: In how few steps at once the columns are too slow.
    """

    like: Tensor
    samples: int
    outputs: int
    width: int
    each: int
    least: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.like.dtype

    @abstractmethod
    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Write the steps `start … stop` of columns into `out` `[N, O, columns]`."""


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
        b: Cotangents `[N, O, T, b]`, of all calls one after the other.
        calls: Each call and what it `held` of its input.
        scale: By what all columns are multiplied, or the numbers `[b, a]` for each of them.
        read: Of a weight that is an embedding too: the rows that it reads `[N, S]`, -1 where there
            is no gradient, and their cotangents `[N, O, S, a]`.
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
        self._is_direct = use.is_direct and len(calls) == 1
        if self._is_direct:  # some of the units at a time
            self.like = self._b = b.transpose(2, 3).contiguous()
            self._calls = [(use, calls[0][1].contiguous())]
            self.width, self.each, self.least = b.shape[3], use.inputs, 1
            return
        features = use.inputs // use.steps
        self.like = self._b = laid_out(b)
        self.width, self.each = use.steps, b.shape[3] * features
        self.least = -(-piece_sizes(b.device).features // features)

    def fill(self, out: Tensor, start: int, stop: int) -> None:
        """Multiply the cotangents with some of the features, or some of them with all."""
        if self._is_direct:
            use, held = self._calls[0]
            out.copy_(use.formed(held, self._b[:, :, start:stop]))
            if isinstance(self._scale, Tensor):
                out.mul_(self._scale[start:stop].flatten())
            elif self._scale != 1.0:
                out.mul_(self._scale)
            return
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
    """How many of `width` steps of `size` bytes a block of about so many bytes has."""
    size = max(1, size)
    steps = max(columns // size, min(least, limited_size(_MOST_BYTES) // size), 1)
    if steps >= width:
        return max(1, width)
    if steps >= _MULTIPLE:
        steps -= steps % _MULTIPLE
    balanced = even(width, steps)
    return min(steps, -(-balanced // _MULTIPLE) * _MULTIPLE)
