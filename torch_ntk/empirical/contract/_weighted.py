"""The inner product `⟨W, Θ⟩` of a block of the kernel with weights, which autograd differentiates.

Gradients of a kernel are derivatives of such inner products. In contrast to `_products`, nothing is
written in place. The weights are applied as early as possible: for a Jacobian, `Σ W ∘ (J1 J2ᵀ)` is
computed as `⟨W J2, J1⟩`, so that the kernel itself is not formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..._types import Output
from ...memory import ranges
from .._outputs import transposed
from ._factors import Factor, GramFactor, JacobianFactor, to
from ._piece_sizes import limited_size, piece_sizes
from ._products import features_gram
from ._through_p import pieces_of_pairs, through
from ._tied import TiedFactor, between


def in_one_piece(factor: Factor, dtype: torch.dtype, output: Output) -> Factor:
    """Return the factor as `weighted` needs it: in one piece, in the dtype of the products."""
    if isinstance(factor, JacobianFactor):
        return replace(factor, j=to(factor.whole(output), dtype), pieces=())
    return factor.kept(dtype, output, False)


def mapped(factor: Factor, f: Callable[[Tensor], Tensor]) -> Factor:
    """Return the factor with `f` applied to all its tensors that may have derivatives."""
    if isinstance(factor, TiedFactor):
        both = (mapped(part, f) for part in (factor.looked_up, factor.applied))
        return TiedFactor(*both)  # type: ignore[arg-type]
    if isinstance(factor, JacobianFactor):
        assert factor.j is not None
        return replace(factor, j=f(factor.j))
    assert isinstance(factor, GramFactor)
    assert factor.a is not None
    a = f(factor.a) if factor.a.is_floating_point() else factor.a
    return replace(factor, a=a, b=f(factor.b))


def weighted(p: Factor, q: Factor, weights: Tensor, output: Output) -> Iterator[Tensor]:
    """Yield numbers whose sum is `Σ W ∘ Θ`, for the contribution of one parameter to a block.

    The weights W have the shape of the block, `[n1, n2, ...]`.
    """
    if isinstance(p, TiedFactor):
        assert isinstance(q, TiedFactor)
        yield from weighted(p.looked_up, q.looked_up, weights, output)
        yield from weighted(p.applied, q.applied, weights, output)
        for a, b, found in between(p.looked_up, q.applied, output, weights.dtype):
            yield (_laid(weights[:, a:b], output) * found).sum()
        back = transposed(weights)
        for a, b, found in between(q.looked_up, p.applied, output, weights.dtype):
            yield (_laid(back[:, a:b], output) * found).sum()
    elif isinstance(p, JacobianFactor):
        assert isinstance(q, JacobianFactor)
        left, right = p.whole(output), q.whole(output)
        rows = _laid(weights, output).reshape(len(left), left.shape[1], right.shape[1])
        yield (torch.bmm(rows, right) * left).sum()
    else:
        assert isinstance(p, GramFactor)
        assert isinstance(q, GramFactor)
        if p.p is not None:
            for n, n_stop, m, m_stop in pieces_of_pairs(p, q):
                found = through(p.narrow(n, n_stop), q.narrow(m, m_stop), output, weights.dtype)
                yield (_laid(weights[n:n_stop, m:m_stop], output) * found).sum()
            return
        for a, b in ranges(0, q.samples, _columns(p, output)):
            yield _of_grams(p, q.narrow(a, b), weights[:, a:b], output)


def _laid(weights: Tensor, output: Output) -> Tensor:
    """Return the weights of a block with the axes of its products; see `_outputs.zeros`."""
    if output == "full":
        return weights.permute(0, 2, 1, 3)
    return weights.permute(2, 0, 1) if output == "diagonal" else weights


def _columns(p: GramFactor, output: Output) -> int:
    """Return how many samples of the columns are contracted at once, which limits the memory."""
    assert p.a is not None
    if p.between:
        each = p.outputs * p.b.shape[2]
    else:
        each = p.positions * {"full": p.outputs**2, "diagonal": p.outputs}.get(output, 1)
    size = p.samples * len(p.a) * p.positions * each * p.b.element_size()
    return max(1, limited_size(piece_sizes(p.device).chunk) // max(1, size))


def _of_grams(p: GramFactor, q: GramFactor, weights: Tensor, output: Output) -> Tensor:
    n, m, o, t = p.samples, q.samples, p.outputs, p.positions
    ga = features_gram(p, q, weights.dtype)
    g = len(ga)
    if p.is_last and q.is_last:  # the Gram matrix of the cotangents is the identity
        if output == "full":
            weights = weights.diagonal(dim1=2, dim2=3).sum(2)
        else:
            weights = weights.sum(2) if output == "diagonal" else weights * o
        return (ga[0] * weights).sum()
    if p.between and output == "full":
        return _between(p, q, ga, weights)
    gb = torch.bmm(p.b, q.b.transpose(1, 2))
    w = _laid(weights, output)
    if output == "full":
        if g * t == 1:  # sums over the outputs first leave less to do
            return ((gb.view(n, o, m, o) * w).sum((1, 3)) * ga[0]).sum()
        found = (gb.view(g, n, o, t, m, o, t) * ga.view(g, n, 1, t, m, 1, t)).sum((0, 3, 6))
    elif output == "diagonal":
        found = (gb.view(g, o, n, t, m, t) * ga.view(g, 1, n, t, m, t)).sum((0, 3, 5))
    else:
        found = (gb * ga).view(g, n, t, m, t).sum((0, 2, 4))
    return (w * found).sum()


def _between(p: GramFactor, q: GramFactor, ga: Tensor, weights: Tensor) -> Tensor:
    """Return `⟨W, Θ⟩` of the full kernel with the features' Gram matrix applied first."""
    n, m, o, t = p.samples, q.samples, p.outputs, p.positions
    g, units = p.b.shape[0], p.b.shape[2]
    rows = q.b.view(g, m, o, t, units).transpose(2, 3).reshape(g * m, t, o * units)
    features = ga.view(g, n * t, m, t).transpose(1, 2).reshape(g * m, n * t, t)
    inner = torch.bmm(features, rows).view(g, m, n, t, o, units)
    inner = inner.permute(2, 1, 4, 0, 3, 5).reshape(n, m * o, g * t * units)
    w = weights.permute(0, 2, 1, 3).reshape(n, o, m * o)
    left = p.b.view(g, n, o, t, units).permute(1, 2, 0, 3, 4).reshape(n, o, g * t * units)
    return (torch.bmm(w, inner) * left).sum()
