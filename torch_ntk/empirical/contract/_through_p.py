"""The contribution of a weight with a P for each of its entries, without its Jacobian.

With P[b, a] for the entries of the weight, features A and cotangents B, J P Jᵀ is

    Θ[n, i, m, j] = Σ_{t,s,b} B[n, i, t, b] D[n, t, m, s, b] B[m, j, s, b],
    D[n, t, m, s, b] = Σ_a P[b, a] A[n, t, a] A[m, s, a].

For P = 1, D is the Gram matrix of the features for every b. D takes T² a b operations for a pair of
samples, and the product of Jacobians takes O² a b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._types import Output
from ...memory import ranges
from ._factors import GramFactor, to
from ._piece_sizes import limited_size, piece_sizes


def add_through_(block: Tensor, p: GramFactor, q: GramFactor, output: Output) -> None:
    """Add a weight's contribution to a block, in pieces that stay in the cache."""
    first, second = (1, 2) if output == "diagonal" else (0, 2 if output == "full" else 1)
    for n, n_stop, m, m_stop in pieces_of_pairs(p, q):
        into = block.narrow(first, n, n_stop - n).narrow(second, m, m_stop - m)
        into += through(p.narrow(n, n_stop), q.narrow(m, m_stop), output, block.dtype)


def pieces_of_pairs(p: GramFactor, q: GramFactor) -> list[tuple[int, int, int, int]]:
    """Return ranges of the samples of p and of those of q that fit in the cache together."""
    assert p.p is not None
    groups, units, inputs = p.p.shape
    each = p.positions**2 * (inputs + 2 * units) + p.positions * p.outputs * units
    size = limited_size(piece_sizes(p.device).again)
    pairs = max(1, size // max(1, groups * each * p.p.element_size()))
    columns = min(q.samples, pairs)
    rows = min(p.samples, max(1, pairs // columns))
    return [
        (n, n_stop, m, m_stop)
        for n, n_stop in ranges(0, p.samples, rows)
        for m, m_stop in ranges(0, q.samples, columns)
    ]


def through(p: GramFactor, q: GramFactor, output: Output, dtype: torch.dtype) -> Tensor:
    """Return the contribution `[n1, O, n2, O]`, `[O, n1, n2]` or, summed, `[n1, n2]`."""
    assert p.a is not None
    assert q.a is not None
    assert p.p is not None
    g, units, inputs = p.p.shape
    n, m, o, t = p.samples, q.samples, p.outputs, p.positions
    both = to(p.a, dtype).unsqueeze(2) * to(q.a, dtype).unsqueeze(1)
    both, weight = both.view(g, n * t * m * t, inputs), to(p.p, dtype)
    if output not in ("full", "diagonal"):
        # The sum over outputs is taken first: Σ_i B[n, i, t, b] B[m, i, s, b] for every b.
        left, right = (
            to(f.b, dtype).view(g, f.samples * t, o, units).permute(0, 3, 1, 2) for f in (p, q)
        )
        d = torch.bmm(weight, both.transpose(1, 2)).view(g, units, n, t, m, t)
        cotangents = torch.matmul(left, right.transpose(2, 3)).view(d.shape)
        return (d * cotangents).sum((0, 1, 3, 5))
    d = torch.bmm(both, weight.transpose(1, 2)).view(g, n, t, m, t, units)
    left, right = (_by_sample(f, output, dtype) for f in (p, q))
    if t == 1:
        inner = d[:, :, :, :, 0, None] * right[:, None, None, :, :, 0]
    else:
        inner = torch.einsum("gntmsb,gmjsb->gntmjb", d, right)
    result = "gnitb,gntmjb->nimj" if output == "full" else "gnitb,gntmib->inm"
    return torch.einsum(result, left, inner)


def _by_sample(f: GramFactor, output: Output, dtype: torch.dtype) -> Tensor:
    """Return the cotangents `[G, n, O, T, b]` for the full kernel or its diagonal."""
    assert f.p is not None
    n, o, t = f.samples, f.outputs, f.positions
    g, units, _ = f.p.shape
    b = to(f.b, dtype)
    if output == "full":
        return b.reshape(g, n, o, t, units)
    return b.reshape(g, o, n, t, units).transpose(1, 2)
