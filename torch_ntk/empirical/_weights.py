"""What one weight contributes to the kernel, in the order that needs the fewest operations.

With features A[n, t, a] and cotangents B[n, i, t, b] of one weight, summed over groups,

    Θ[n, m, i, j] = Σ_{t,s} ⟨A[n, t], A[m, s]⟩ ⟨B[n, i, t], B[m, j, s]⟩ = ⟨J[n, i], J[m, j]⟩

with J[n, i] = Σ_t B[n, i, t] ⊗ A[n, t]. The first form costs about T² (a + O² b) per pair of
samples, the second O² a b, so that many positions call for J and few for Gram matrices
(Novak et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Output
from ._limit import limit
from ._outputs import add_jacobians_
from .rules import Use

_CHUNK_BYTES = 256 * 1024**2  # of the product over positions, before it is summed


def _chunk() -> int:
    allowed = limit()
    return _CHUNK_BYTES if allowed is None else min(_CHUNK_BYTES, allowed // 8)


@dataclass
class Part:
    """One weight's factors for a block of samples: `a` and `b`, or the Jacobian `j`."""

    j: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    use: Use | None = None


@dataclass(frozen=True)
class Cost:
    """Operations for the whole kernel by the two forms, and the numbers kept per sample."""

    gram: float
    jacobian: float
    gram_size: int
    jacobian_size: int

    @property
    def by_gram(self) -> bool:
        """Whether Gram matrices are the cheaper form."""
        return self.gram <= self.jacobian


def cost(use: Use, t: int, o: int, output: Output, samples: int, pairs: float) -> Cost:
    """Count operations for a weight with `t` positions in all its uses together.

    Args:
        use: The first use; all have the same sizes.
        t: Positions T.
        o: Outputs O.
        output: The kernel's output.
        samples: How many samples' Jacobians would be formed.
        pairs: How many pairs of samples are contracted.
    """
    g, b = use.groups, use.units
    per_pair = o * o if output == "full" else o
    entries = o * o if output == "full" else (o if output == "diagonal" else 1)
    gram = 2.0 * pairs * g * t * t * (use.gram_width + per_pair * b + entries)
    size = int(use.weight.numel())
    jacobian = 2.0 * pairs * per_pair * size + 2.0 * samples * o * t * size
    return Cost(gram, jacobian, g * t * (use.gram_width + o * b), o * size)


def add_(block: Tensor, p: Part, q: Part, output: Output) -> None:
    """Add a parameter's contribution between two blocks of samples; see `_outputs.zeros`."""
    if p.j is not None:
        assert q.j is not None
        add_jacobians_(block, p.j, q.j, output)
        return
    assert p.a is not None
    assert p.b is not None
    assert q.a is not None
    assert q.b is not None
    assert p.use is not None
    n1, o, g, t, _ = p.b.shape
    n2 = q.b.shape[0]
    entries = o * o if output == "full" else (o if output == "diagonal" else 1)
    per_column = n1 * g * t * t * (entries + 1) * p.b.element_size()
    step = n2 if g * t == 1 else max(1, _chunk() // per_column)
    columns = 2 if output in ("full", "diagonal") else 1
    for m in range(0, n2, step):
        part = block.narrow(columns, m, min(step, n2 - m))
        _add_grams_(part, p.use, p.a, p.b, q.a[m : m + step], q.b[m : m + step], output)


def _add_grams_(
    block: Tensor, use: Use, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, output: Output
) -> None:
    n1, o, g, t, _ = b1.shape
    n2 = b2.shape[0]
    ga = use.gram(_rows(a1), _rows(a2)).view(g, n1, t, n2, t)
    if output == "full":
        f1 = b1.permute(2, 0, 1, 3, 4).reshape(g, n1 * o * t, -1)
        f2 = b2.permute(2, 0, 1, 3, 4).reshape(g, n2 * o * t, -1)
        gb = torch.bmm(f1, f2.transpose(1, 2)).view(g, n1, o, t, n2, o, t)
        _add_product_(block, gb, ga[:, :, None, :, :, None, :], (0, 3, 6))
    elif output == "diagonal":
        f1 = b1.permute(2, 1, 0, 3, 4).reshape(g * o, n1 * t, -1)
        f2 = b2.permute(2, 1, 0, 3, 4).reshape(g * o, n2 * t, -1)
        gb = torch.bmm(f1, f2.transpose(1, 2)).view(g, o, n1, t, n2, t)
        _add_product_(block, gb, ga.unsqueeze(1), (0, 3, 5))
    else:  # Σ_i ⟨B[n, i, t], B[m, i, s]⟩ is one product over (i, b)
        f1 = b1.permute(2, 0, 3, 1, 4).reshape(g, n1 * t, -1)
        f2 = b2.permute(2, 0, 3, 1, 4).reshape(g, n2 * t, -1)
        gb = torch.bmm(f1, f2.transpose(1, 2)).view(g, n1, t, n2, t)
        _add_product_(block, gb, ga, (0, 2, 4))


def _add_product_(block: Tensor, gb: Tensor, ga: Tensor, dims: tuple[int, ...]) -> None:
    """Add `gb ∘ ga` summed over groups and positions; without any, in one pass."""
    if all(gb.shape[d] == 1 for d in dims):
        block.addcmul_(gb.squeeze(dims), ga.squeeze(dims))
    else:
        block += gb.mul_(ga).sum(dims)


def _rows(a: Tensor) -> Tensor:
    """`[N, G, T, a]` to `[G, N·T, a]`."""
    return a.transpose(0, 1).reshape(a.shape[1], -1, a.shape[3])
