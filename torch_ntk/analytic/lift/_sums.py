"""Sums of branches: allowed where there is no covariance between them."""

from __future__ import annotations

from ..operations import WeightedSum
from ._builder import Builder
from ._values import Value


def add(builder: Builder, a: Value, b: Value) -> Value:
    """The sum of two values without covariance between them."""
    if a.shape != b.shape:
        raise builder.refusal(
            f"a sum of features of shapes {a.shape} and {b.shape}",
            "Only values of one shape can be added in the limit.",
        )
    if not (_fresh(a, b) or _fresh(b, a)):
        raise builder.refusal(
            "a sum of values that are not independent",
            "Neither ends in a layer of its own after the point where they part, so there is a "
            "covariance between them that the recursion does not carry.",
            "Put an NTK layer at the end of one of the branches.",
        )
    both = a.unflattened, b.unflattened
    if both[0] is not None and both[1] is not None and both[0].shape == both[1].shape:
        return builder.flatten(add(builder, *both))  # type: ignore[arg-type]
    return builder.step(
        WeightedSum((1.0, 1.0)),
        (a, b),
        gaussian=a.gaussian and b.gaussian,
        sources=a.sources | b.sources if a.centred and b.centred else frozenset(),
    )


def _fresh(a: Value, b: Value) -> bool:
    """Whether a is a sum of outputs of layers that b knows nothing of.

    Then both E[a b] and the products of their gradients vanish: each term holds one of those
    layers' weights exactly once, and these are independent and of zero mean.
    """
    return a.centred and not (a.sources & b.ancestors)
