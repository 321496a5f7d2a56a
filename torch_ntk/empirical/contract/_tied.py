"""A weight that is both an embedding and a linear layer, as in most language models.

With ids of the tokens and cotangents c of the embedding, and features A and cotangents B of the
layer, the Jacobian of the weight W `[V, d]` is

    J[n, i] = Σ_t e(id[n, t]) ⊗ c[n, i, t] + Σ_s B[n, i, s] ⊗ A[n, s]

with unit vectors e. The two terms, of O·V·d numbers each, are not formed. The kernel consists of
the products of the Gram matrices of each use, and of the products between the two uses,

    Σ_{t,s} B[m, j, s, id[n, t]] ⟨c[n, i, t], A[m, s]⟩.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._types import Output
from ...memory import ranges
from ._factors import Factor, GramFactor, to
from ._piece_sizes import limited_size, piece_sizes


@dataclass(frozen=True)
class TiedFactor(Factor):
    """The factors of both uses.

    Attributes:
        looked_up: The factor of the embedding, whose features are indices, -1 where there is no
            gradient.
        applied: The factor of the linear layer.
    """

    looked_up: GramFactor
    applied: GramFactor

    @property
    def samples(self) -> int:  # type: ignore[override]
        """The number N of samples."""
        return self.applied.samples

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number O of outputs."""
        return self.applied.outputs

    @property
    def positions(self) -> int:  # type: ignore[override]
        """The positions of both uses."""
        return self.looked_up.positions + self.applied.positions

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return self.applied.device

    @property
    def multiplications(self) -> float:
        """The approximate number of multiplications of a product with itself."""
        return self.looked_up.multiplications + self.applied.multiplications

    @property
    def passes(self) -> bool:
        """False, since both factors are stored."""
        return False

    def narrow(self, start: int, stop: int) -> TiedFactor:
        """Return the rows of these samples."""
        return TiedFactor(self.looked_up.narrow(start, stop), self.applied.narrow(start, stop))

    def kept(self, dtype: torch.dtype, output: Output, alone: bool) -> TiedFactor:
        """Return both factors converted to `dtype`."""
        both = (f.kept(dtype, output, alone) for f in (self.looked_up, self.applied))
        return TiedFactor(*both)

    def followed_by(self, parts: Sequence[Factor]) -> TiedFactor:
        """Return both factors for all blocks."""
        tied = [p for p in parts if isinstance(p, TiedFactor)]
        return TiedFactor(
            self.looked_up.followed_by([p.looked_up for p in tied]),
            self.applied.followed_by([p.applied for p in tied]),
        )


def add_between_(block: Tensor, p: GramFactor, q: GramFactor, output: Output, swap: bool) -> None:
    """Add the products between the embedding `p` and the linear layer `q`.

    The rows of the block are the samples of p, or with `swap` those of q.
    """
    columns = 2 if output in ("full", "diagonal") else 1
    for m, stop, found in between(p, q, output, block.dtype):
        if swap:  # the samples of q, with their outputs, are the rows
            found = found.permute(2, 3, 0, 1) if output == "full" else found.transpose(-1, -2)
            first = columns - 2 if output == "full" else columns - 1
            block.narrow(first, m, stop - m).add_(found)
        else:
            block.narrow(columns, m, stop - m).add_(found)


def between(
    p: GramFactor, q: GramFactor, output: Output, dtype: torch.dtype
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the products between the embedding and the linear layer, for blocks of q's samples.

    Yields:
        The first of these samples, the one after the last, and `[n1, O, n2, O]`, `[O, n1, n2]` or,
        summed over outputs, `[n1, n2]`.
    """
    assert p.a is not None
    index = p.a.reshape(-1)  # the rows that the embedding reads, `[n·T]`
    entries = p.outputs * p.samples * p.positions * q.positions * (torch.finfo(dtype).bits // 8)
    step = max(1, limited_size(piece_sizes(p.device).chunk) // (2 * entries))
    for m, stop in ranges(0, q.samples, step):
        yield m, stop, _between(p, index, q.narrow(m, stop), output, dtype)


def _between(
    p: GramFactor, index: Tensor, q: GramFactor, output: Output, dtype: torch.dtype
) -> Tensor:
    assert q.a is not None
    n1, n2, o, t, s = p.samples, q.samples, p.outputs, p.positions, q.positions
    c, b = _by_output(p, output), _by_output(q, output)
    a = to(q.a[0], dtype)
    read = index.clamp(min=0)
    # [O, n2·S, n1·T] and [O, n1·T, n2·S]
    picked = torch.stack([to(rows.index_select(1, read), dtype) for rows in b])
    picked *= (index >= 0).to(dtype)
    inner = torch.matmul(to(c, dtype), a.T)
    if p.scale != 1.0:  # P of the weight, which both uses have
        inner *= p.scale
    left = inner.view(o, n1, t, n2, s)
    right = picked.view(o, n2, s, n1, t)
    if output == "full":
        left = left.permute(1, 3, 0, 2, 4).reshape(n1 * n2, o, t * s)
        right = right.permute(3, 1, 0, 4, 2).reshape(n1 * n2, o, t * s)
        return torch.bmm(left, right.mT).view(n1, n2, o, o).permute(0, 2, 1, 3)
    found = (left * right.permute(0, 3, 4, 1, 2)).sum((2, 4))
    return found if output == "diagonal" else found.sum(0)


def _by_output(f: GramFactor, output: Output) -> Tensor:
    """Return the cotangents `[O, n·T, b]`."""
    n, o, t = f.samples, f.outputs, f.positions
    if output == "diagonal":
        return f.b
    if output == "full":
        return f.b[0].view(n, o, t, -1).transpose(0, 1).reshape(o, n * t, -1)
    return f.b[0].view(n * t, o, -1).transpose(0, 1)
