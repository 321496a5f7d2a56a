"""How many operations each order of contracting one weight takes.

With features A[n, t, a] and cotangents B[n, i, t, b] of one weight, summed over groups,

    Θ[n, m, i, j] = Σ_{t,s} ⟨A[n, t], A[m, s]⟩ ⟨B[n, i, t], B[m, j, s]⟩ = ⟨J[n, i], J[m, j]⟩

with J[n, i] = Σ_t B[n, i, t] ⊗ A[n, t] (Novak et al. 2022, "Fast finite width neural tangent
kernel"). A pair of samples takes about

    "gram"       T² (a + O² b)              both Gram matrices, multiplied entry by entry;
    "features"   T² (a + O b) + T O² b      the Gram matrix of the features applied to the
                                            cotangents of one sample, then those of the other;
    "jacobian"   O² a b                     and forming J takes T O a b for each sample.

Many positions call for J, a single one for Gram matrices, and few for the form in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .._types import Output
from .rules import Use

Contraction = Literal["gram", "features", "jacobian"]

# What writing and reading a number takes, in operations of a product: an entry of a Jacobian or
# of a Gram matrix, and of what is multiplied in small pieces.
_TRAFFIC = 100.0
_IN_PIECES = 200.0


@dataclass(frozen=True)
class Way:
    """One order of contraction.

    Attributes:
        contraction: Its name.
        operations: Floating-point operations for the whole kernel.
        size: Numbers kept per sample.
        effort: Operations with memory traffic and precision weighed in.
    """

    contraction: Contraction
    operations: float
    size: int
    effort: float


def ways(
    use: Use, t: int, o: int, output: Output, samples: int, pairs: float, price: float = 1.0
) -> dict[Contraction, Way]:
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
    kept = g * t * (use.gram_width + o * b)

    gram = 2.0 * places * (use.gram_width + per_pair * b + entries)
    forming, contracted = 2.0 * samples * o * use.forming(t), 2.0 * pairs * per_pair * size
    by_jacobian = forming + price * contracted + _TRAFFIC * samples * o * size
    found = [
        Way("gram", gram, kept, price * gram + _TRAFFIC * places * entries),
        Way("jacobian", forming + contracted, o * size, by_jacobian),
    ]
    if output == "full":
        applied = 2.0 * places * (use.gram_width + o * b) + 2.0 * pairs * g * t * per_pair * b
        traffic = _IN_PIECES * pairs * g * t * o * (b + t)
        found.append(Way("features", applied, kept, price * applied + traffic))
    return {way.contraction: way for way in found}


def cheapest(found: Mapping[Contraction, Way]) -> Way:
    """The way of the least effort; of equal ones the first of `ways`."""
    return min(found.values(), key=lambda way: way.effort)
