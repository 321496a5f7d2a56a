"""The numbers of operations of the orders in which one weight can be contracted.

With features A[n, t, a] and cotangents B[n, i, t, b] of one weight, summed over groups,

    Θ[n, m, i, j] = Σ_{t,s} ⟨A[n, t], A[m, s]⟩ ⟨B[n, i, t], B[m, j, s]⟩ = ⟨J[n, i], J[m, j]⟩

with J[n, i] = Σ_t B[n, i, t] ⊗ A[n, t] (Novak et al. 2022, "Fast finite width neural tangent
kernel"). A pair of samples takes about

    "gram"       T² (a + O² b)              both Gram matrices, multiplied entry by entry;
    "features"   T² (a + O b) + T O² b      the Gram matrix of the features applied to the
                                            cotangents of one sample, then those of the other;
    "jacobian"   O² a b                     and forming J takes T O a b for each sample;
    "pairs"      T² (a b + O b) + T O² b    where P differs from entry to entry: see `_through_p`.

With many positions J is cheapest, with a single one Gram matrices, and with a few the second form.
A weight that is both an embedding and a linear layer is "tied": the kernel is the sum of Gram
matrices of each use and of products between the two uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .._job import KernelJob
from ..rules import Use

Contraction = Literal["gram", "features", "jacobian", "pairs", "tied"]

# Memory traffic per entry, in FLOP equivalents: of a Jacobian or a Gram matrix, and of tensors that
# are multiplied in small pieces.
_TRAFFIC = 100.0
_IN_PIECES = 200.0
# The time of an operation of a product in float64, relative to float32.
_DOUBLE = 2.0


@dataclass(frozen=True)
class ContractionCost:
    """The cost of one order of contraction.

    Attributes:
        contraction: The name of the order.
        operations: The floating-point operations for the whole kernel.
        size: The number of entries that are stored per sample.
        effort: The operations, weighted by precision, plus memory traffic in FLOP equivalents.
    """

    contraction: Contraction
    operations: float
    size: int
    effort: float


def contraction_costs(job: KernelJob, use: Use, t: int) -> dict[Contraction, ContractionCost]:
    """Count operations for a weight with T = `t` positions in all its uses, which are alike."""
    o, output, samples, pairs = job.outputs, job.output, job.samples, job.pairs
    price = 1.0 if job.fn.products == job.fn.dtype else _DOUBLE
    g, b = use.groups, use.units
    per_pair = o * o if output == "full" else o
    entries = o * o if output == "full" else (o if output == "diagonal" else 1)
    places = pairs * g * t * t
    size = int(use.weight.numel())
    kept = g * t * (use.gram_width + o * b)

    gram = 2.0 * places * (use.gram_width + per_pair * b + entries)
    forming, contracted = 2.0 * samples * o * use.forming(t), 2.0 * pairs * per_pair * size
    by_jacobian = forming + price * contracted + _TRAFFIC * samples * o * size
    found = [
        ContractionCost("gram", gram, kept, price * gram + _TRAFFIC * places * entries),
        ContractionCost("jacobian", forming + contracted, o * size, by_jacobian),
    ]
    if output == "full":
        applied = 2.0 * places * (use.gram_width + o * b) + 2.0 * pairs * g * t * per_pair * b
        traffic = _IN_PIECES * pairs * g * t * o * (b + t)
        found.append(ContractionCost("features", applied, kept, price * applied + traffic))
    if job.precondition.varies(use.name) and use.is_matrix and not use.has_one_feature:
        through = 2.0 * (places * b * (use.inputs + o) + pairs * g * t * per_pair * b)
        inner = pairs * g * t * o * b if output in ("full", "diagonal") else places * b
        traffic = _TRAFFIC * (places * (use.inputs + b) + inner)
        found.append(ContractionCost("pairs", through, kept, price * through + traffic))
    return {cost.contraction: cost for cost in found}


def cheapest(found: Mapping[Contraction, ContractionCost]) -> ContractionCost:
    """Return the cost with the least effort; of equal ones the first of `contraction_costs`."""
    return min(found.values(), key=lambda cost: cost.effort)
