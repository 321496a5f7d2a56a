"""What one weight contributes to the kernel, in the order that needs the fewest operations.

With features A[n, t, a] and cotangents B[n, i, t, b] of one weight, summed over groups,

    Θ[n, m, i, j] = Σ_{t,s} ⟨A[n, t], A[m, s]⟩ ⟨B[n, i, t], B[m, j, s]⟩ = ⟨J[n, i], J[m, j]⟩

with J[n, i] = Σ_t B[n, i, t] ⊗ A[n, t]. The first form costs about T² (a + O² b) per pair of
samples, the second O² a b, so that many positions call for J and few for Gram matrices
(Novak et al. 2022). A bias of the same calls has the features 1 and the same cotangents: in the
first form it adds 1 to ⟨A[n, t], A[m, s]⟩.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import Output
from ._columns import Formed, Piece, blocks, whole
from ._limit import limit
from .rules import Use

_CHUNK_BYTES = 64 * 1024**2  # of the product over positions, before it is summed
# What writing and reading an entry of a Jacobian or a Gram matrix takes, in operations of a
# product.
_TRAFFIC = 100.0


def _chunk() -> int:
    allowed = limit()
    return _CHUNK_BYTES if allowed is None else min(_CHUNK_BYTES, allowed // 8)


@dataclass(frozen=True)
class Part:
    """One weight's factors for a block of samples, laid out by `of_jacobian` or `of_factors`.

    All are stacks of matrices whose rows run over samples before all else.

    Attributes:
        samples, outputs, positions: N, O and T.
        j: The Jacobian, as `_columns.laid` lays it out.
        a: Features `[G, N·T, a]`.
        b: Cotangents: `[G, N·O·T, b]`, `[G·O, N·T, b]` and `[G, N·T, O·b]`.
        pieces: The Jacobian in pieces of consecutive samples, in place of `j`.
        is_last: Whether the cotangents of every sample are the identity matrix.
        use: Multiplies features.
        shift: What a bias adds to products of features.
    """

    samples: int
    outputs: int
    positions: int = 1
    j: Tensor | None = None
    pieces: tuple[Piece, ...] = ()
    a: Tensor | None = None
    b: Tensor | None = None
    use: Use | None = None
    shift: float = 0.0
    is_last: bool = False

    def narrow(self, start: int, stop: int) -> Part:
        """The part for the samples `start … stop`, without a copy; not of pieces."""

        def rows(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            each = t.shape[1] // self.samples
            return t[:, start * each : stop * each]

        size = stop - start
        return replace(self, samples=size, j=rows(self.j), a=rows(self.a), b=rows(self.b))

    def whole(self, output: Output) -> Part:
        """The same with the Jacobian in one piece."""
        return replace(self, j=whole(self.pieces, output), pieces=()) if self.pieces else self

    def factors_in(self, dtype: torch.dtype) -> Part:
        """The same with features and cotangents in `dtype`, for products with several others."""
        if self.a is None or self.b is None:
            return self
        return replace(self, a=_to(self.a, dtype), b=_to(self.b, dtype))

    def ready(self, dtype: torch.dtype, output: Output) -> Part:
        """For products with several others: whole, unless it is to be converted anyway."""
        is_same = bool(self.pieces) and self.pieces[0].dtype == dtype
        return self.whole(output) if is_same else self

    @staticmethod
    def joined(parts: list[Part]) -> Part:
        """Parts of consecutive blocks of samples as that of one block."""

        def cat(tensors: list[Tensor | None]) -> Tensor | None:
            present = [t for t in tensors if t is not None]
            return torch.cat(present, dim=1) if present else None

        return replace(
            parts[0],
            samples=sum(p.samples for p in parts),
            pieces=tuple(piece for p in parts for piece in p.pieces),
            a=cat([p.a for p in parts]),
            b=cat([p.b for p in parts]),
            is_last=all(p.is_last for p in parts),
        )


def of_jacobian(*pieces: Tensor | Piece) -> Part:
    """A part from the Jacobian `[N, O, p]`, or from pieces of it."""
    found = tuple(Formed(p) if isinstance(p, Tensor) else p for p in pieces)
    return Part(sum(p.samples for p in found), found[0].outputs, pieces=found)


def of_factors(a: Tensor, b: Tensor, use: Use, output: Output, shift: float = 0.0) -> Part:
    """A part from features `[N, G, T, a]` and cotangents `[N, O, G, T, b]`."""
    n, o, g, t, units = b.shape
    rows = a.transpose(0, 1).reshape(g, n * t, a.shape[3])
    if output == "full":
        laid = b.permute(2, 0, 1, 3, 4).reshape(g, n * o * t, units)
    elif output == "diagonal":
        laid = b.permute(2, 1, 0, 3, 4).reshape(g * o, n * t, units)
    else:  # Σ_i ⟨B[n, i, t], B[m, i, s]⟩ is one product over (i, b)
        laid = b.permute(2, 0, 3, 1, 4).reshape(g, n * t, o * units)
    is_last = g * t == 1 and units == o and bool((b.view(n, o, o) == torch.eye(o).to(b)).all())
    return Part(n, o, t, a=rows, b=laid, use=use, shift=shift, is_last=is_last)


@dataclass(frozen=True)
class Cost:
    """Operations for the whole kernel by the two forms, and the numbers kept per sample.

    Attributes:
        gram: Operations by Gram matrices.
        jacobian: Operations by the Jacobian.
        gram_size: Numbers kept per sample for Gram matrices.
        jacobian_size: Numbers kept per sample of the Jacobian.
        gram_effort: Operations with memory traffic and precision weighed in.
        jacobian_effort: The same by the Jacobian.
    """

    gram: float
    jacobian: float
    gram_size: int
    jacobian_size: int
    gram_effort: float
    jacobian_effort: float

    @property
    def by_gram(self) -> bool:
        """Whether Gram matrices are the faster form."""
        return self.gram_effort <= self.jacobian_effort


def cost(
    use: Use, t: int, o: int, output: Output, samples: int, pairs: float, price: float = 1.0
) -> Cost:
    """Count operations for a weight with `t` positions in all its uses together.

    Args:
        use: The first use; all have the same sizes.
        t: Positions T.
        o: Outputs O.
        output: The kernel's output.
        samples: How many samples' Jacobians would be formed.
        pairs: How many pairs of samples are contracted.
        price: Of an operation in a contraction, where it is in another precision than what the
            network is evaluated in.
    """
    g, b = use.groups, use.units
    per_pair = o * o if output == "full" else o
    entries = o * o if output == "full" else (o if output == "diagonal" else 1)
    places = pairs * g * t * t
    size = int(use.weight.numel())
    gram = 2.0 * places * (use.gram_width + per_pair * b + entries)
    forming, contracted = 2.0 * samples * o * use.forming(t), 2.0 * pairs * per_pair * size
    by_gram = price * gram + _TRAFFIC * places * entries
    by_jacobian = forming + price * contracted + _TRAFFIC * samples * o * size
    kept = g * t * (use.gram_width + o * b)
    return Cost(gram, forming + contracted, kept, o * size, by_gram, by_jacobian)


def add_(block: Tensor, p: Part, q: Part, output: Output) -> None:
    """Add a parameter's contribution between two blocks of samples; see `_outputs.zeros`.

    Factors of less precision than the block are converted to its own before they are multiplied.
    """
    if p.a is None:
        n1, n2 = (s * p.outputs if output == "full" else s for s in (p.samples, q.samples))
        into = block if output == "diagonal" else block.view(1, n1, n2)
        for left, right in _jacobians(p, q, output, block.dtype):
            add_product_(into, left, right)
        return
    assert p.use is not None
    groups, rows, _ = p.a.shape
    t = p.positions
    entries = p.outputs**2 if output == "full" else (p.outputs if output == "diagonal" else 1)
    per_column = rows * groups * t * (entries + 1) * p.a.element_size()
    step = q.samples if groups * t == 1 else max(1, _chunk() // per_column)
    columns = 2 if output in ("full", "diagonal") else 1
    for m in range(0, q.samples, step):
        size = min(step, q.samples - m)
        _add_grams_(block.narrow(columns, m, size), p, q.narrow(m, m + size), output)


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
        into[0].addmm_(left[0], right[0].T)
    else:
        into.baddbmm_(left, right.transpose(1, 2))


def _to(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Features that are indices stay what they are."""
    return t.to(dtype) if t.is_floating_point() else t


def _add_grams_(block: Tensor, p: Part, q: Part, output: Output) -> None:
    assert p.use is not None
    assert p.a is not None
    assert p.b is not None
    assert q.a is not None
    assert q.b is not None
    n1, n2, o, t = p.samples, q.samples, p.outputs, p.positions
    ga = p.use.gram(_to(p.a, block.dtype), _to(q.a, block.dtype)).to(block.dtype)
    if p.shift:
        ga += p.shift
    g = ga.shape[0]
    if p.is_last and q.is_last:
        _add_identity_(block, ga[0], output, o)
        return
    gb = torch.bmm(_to(p.b, block.dtype), _to(q.b, block.dtype).transpose(1, 2))
    if output == "full" and g * t == 1:
        # The outputs of the columns are the innermost axis: spread over it, the Gram matrix of
        # the features multiplies long rows instead of short ones.
        wide = ga.view(n1, 1, n2, 1).expand(n1, 1, n2, o).reshape(n1, 1, n2 * o)
        block.view(n1, o, n2 * o).addcmul_(gb.view(n1, o, n2 * o), wide)
    elif output == "full":
        ga = ga.view(g, n1, 1, t, n2, 1, t)
        _add_product_(block, gb.view(g, n1, o, t, n2, o, t), ga, (0, 3, 6))
    elif output == "diagonal":
        ga = ga.view(g, 1, n1, t, n2, t)
        _add_product_(block, gb.view(g, o, n1, t, n2, t), ga, (0, 3, 5))
    else:
        _add_product_(block, gb.view(g, n1, t, n2, t), ga.view(g, n1, t, n2, t), (0, 2, 4))


def _add_identity_(block: Tensor, ga: Tensor, output: Output, o: int) -> None:
    """Add what a last layer contributes, whose cotangents are the identity matrix."""
    if output == "full":
        block.diagonal(dim1=1, dim2=3).add_(ga.unsqueeze(2))
    else:
        block.add_(ga, alpha=1 if output == "diagonal" else o)


def _add_product_(block: Tensor, gb: Tensor, ga: Tensor, dims: tuple[int, ...]) -> None:
    """Add `gb ∘ ga` summed over groups and positions; without any, in one pass."""
    if all(gb.shape[d] == 1 for d in dims):
        block.addcmul_(gb.squeeze(dims), ga.squeeze(dims))
    else:
        block += gb.mul_(ga).sum(dims)
