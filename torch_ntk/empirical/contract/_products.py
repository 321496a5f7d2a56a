"""Add the contribution of one weight to a block of the kernel, in the planned order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._types import Output
from ...memory import ranges
from ._factors import Factor, GramFactor, JacobianFactor, to
from ._jacobian_pieces import blocks
from ._piece_sizes import limited_size, piece_sizes
from ._through_p import add_through_
from ._tied import TiedFactor, add_between_


def add_(block: Tensor, p: Factor, q: Factor, output: Output) -> None:
    """Add a parameter's contribution between two blocks of samples; see `_outputs.zeros`.

    Factors of less precision than the block are converted to its own before they are multiplied.
    """
    if isinstance(p, GramFactor):
        assert isinstance(q, GramFactor)
        if p.p is not None:
            add_through_(block, p, q, output)
        elif p.between and output == "full":
            _add_between_(block, p, q, output)
        else:
            _add_grams_(block, p, q, output)
        return
    if isinstance(p, TiedFactor):
        assert isinstance(q, TiedFactor)
        add_(block, p.looked_up, q.looked_up, output)
        add_(block, p.applied, q.applied, output)
        add_between_(block, p.looked_up, q.applied, output, swap=False)
        add_between_(block, q.looked_up, p.applied, output, swap=True)
        return
    assert isinstance(p, JacobianFactor)
    assert isinstance(q, JacobianFactor)
    n1, n2 = (s * p.outputs if output == "full" else s for s in (p.samples, q.samples))
    into = block if output == "diagonal" else block.view(1, n1, n2)
    for left, right in _jacobians(p, q, output, block.dtype):
        add_product_(into, left, right)


def _jacobians(
    p: JacobianFactor, q: JacobianFactor, output: Output, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both whole Jacobians, or blocks of their columns if they must be converted."""
    if p.pieces and q.pieces and p.pieces[0].dtype != dtype:
        sides = [p.pieces] if p is q else [p.pieces, q.pieces]
        yield from ((found[0], found[-1]) for found in blocks(sides, output, dtype))
        return
    yield p.whole(output), q.whole(output)


def add_product_(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ rightᵀ` of stacks of matrices to a stack of matrices."""
    if len(into) == 1:
        into[0].addmm_(left[0], right[0].T)
    else:
        into.baddbmm_(left, right.transpose(1, 2))


def _add_grams_(block: Tensor, p: GramFactor, q: GramFactor, output: Output) -> None:
    """Add the product, entry by entry, of the Gram matrices of features and of cotangents."""
    assert p.a is not None
    groups, rows, _ = p.a.shape
    t = p.positions
    entries = p.outputs**2 if output == "full" else (p.outputs if output == "diagonal" else 1)
    per_column = rows * groups * t * (entries + 1) * p.a.element_size()
    step = (
        q.samples
        if groups * t == 1
        else max(1, limited_size(piece_sizes(block.device).chunk) // per_column)
    )
    columns = 2 if output in ("full", "diagonal") else 1
    for m, stop in ranges(0, q.samples, step):
        _add_piece_(block.narrow(columns, m, stop - m), p, q.narrow(m, stop), output)


def _add_between_(block: Tensor, p: GramFactor, q: GramFactor, output: Output) -> None:
    """Add the cotangents of `p` times the Gram matrix of the features times those of `q`.

        Θ[n, i, m, j] = Σ_{t,b} B[n, i, t, b] Σ_s G[n, t, m, s] B[m, j, s, b]

    is the full kernel. It is added piece by piece, so that the inner sum stays in the cache.
    """
    item = torch.finfo(block.dtype).bits // 8
    groups, units = p.b.shape[0], p.b.shape[2]
    each = groups * p.outputs * p.positions * (units + p.positions) * item
    size = piece_sizes(block.device)
    rows = max(1, min(p.samples, -(-size.tall // p.positions)))
    columns = max(1, limited_size(size.again) // max(1, each * rows))
    for n, n_stop in ranges(0, p.samples, rows):
        left = p.narrow(n, n_stop)
        for m, m_stop in ranges(0, q.samples, columns):
            into = block.narrow(0, n, n_stop - n).narrow(2, m, m_stop - m)
            into += _between(left, q.narrow(m, m_stop), block.dtype)


def _between(p: GramFactor, q: GramFactor, dtype: torch.dtype) -> Tensor:
    """Return the contribution `[n1, O, n2, O]`."""
    n1, n2, o, t = p.samples, q.samples, p.outputs, p.positions
    ga = features_gram(p, q, dtype)
    g = ga.shape[0]
    # The small Gram matrix is repeated for every output, so that the cotangents are not copied.
    ga = ga.view(g, n1 * t, n2, 1, t).permute(0, 2, 3, 1, 4).expand(g, n2, o, n1 * t, t)
    right = to(q.b, dtype).reshape(g * n2 * o, t, -1)
    inner = torch.bmm(ga.reshape(g * n2 * o, n1 * t, t), right)  # [(g, m, j), (n, t), b]
    left = to(p.b, dtype).reshape(g * n1, o, -1)
    inner = inner.view(g, n2 * o, n1, left.shape[2]).permute(0, 2, 3, 1)
    found = left.new_zeros(n1, o, n2 * o)
    for k in range(g):
        found.baddbmm_(left[k * n1 : (k + 1) * n1], inner[k])
    return found.view(n1, o, n2, o)


def features_gram(p: GramFactor, q: GramFactor, dtype: torch.dtype) -> Tensor:
    """Return the features' Gram matrix `[G, n1·T, n2·T]`, with P and a bias of the same calls."""
    assert p.a is not None
    assert q.a is not None
    ga = p.use.gram(to(p.a, dtype), to(q.a, dtype)).to(dtype)
    if p.scale != 1.0:
        ga *= p.scale
    if p.shift:
        ga += p.shift
    return ga


def _add_piece_(block: Tensor, p: GramFactor, q: GramFactor, output: Output) -> None:
    n1, n2, o, t = p.samples, q.samples, p.outputs, p.positions
    ga = features_gram(p, q, block.dtype)
    g = ga.shape[0]
    if p.is_last and q.is_last:
        _add_identity_(block, ga[0], output, o)
        return
    left, right = to(p.b, block.dtype), to(q.b, block.dtype)
    gb = torch.bmm(left, right.transpose(1, 2))
    if output == "full":
        ga = ga.view(g, n1, 1, t, n2, 1, t)
        _add_product_(block, gb.view(g, n1, o, t, n2, o, t), ga, (0, 3, 6))
    elif output == "diagonal":
        ga = ga.view(g, 1, n1, t, n2, t)
        _add_product_(block, gb.view(g, o, n1, t, n2, t), ga, (0, 3, 5))
    else:
        _add_product_(block, gb.view(g, n1, t, n2, t), ga.view(g, n1, t, n2, t), (0, 2, 4))


def _add_identity_(block: Tensor, ga: Tensor, output: Output, o: int) -> None:
    """Add the contribution of a last layer, whose cotangents are the identity matrix."""
    if output == "full":
        block.diagonal(dim1=1, dim2=3).add_(ga.unsqueeze(2))
    else:
        block.add_(ga, alpha=1 if output == "diagonal" else o)


def _add_product_(block: Tensor, gb: Tensor, ga: Tensor, dims: tuple[int, ...]) -> None:
    """Add `gb ∘ ga` summed over groups and positions; in one pass if there is one of each."""
    if all(gb.shape[d] == 1 for d in dims):
        block.addcmul_(gb.squeeze(dims), ga.squeeze(dims))
    else:
        block += gb.mul_(ga).sum(dims)
