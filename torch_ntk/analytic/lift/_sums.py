"""Sums of branches: allowed where there is no covariance between them."""

from __future__ import annotations

import functools
from dataclasses import replace

from ..operations import WeightedSum
from ._builder import Builder
from ._linear_maps import sum_of_maps
from ._values import Data, Value


def add(b: Builder, x: Value, y: Value) -> Value:
    """The sum of two values without covariance between them, or of maps over positions of one."""
    if not _alike(x, y):
        raise b.refusal(
            f"a sum of features of shapes {x.shape} and {y.shape} with channels on axes "
            f"{x.axis + 1} and {y.axis + 1}",
            "Only values of one shape can be added in the limit.",
            "Permute or average one of them first.",
        )
    one, two = x.unflattened, y.unflattened
    if one is not None and two is not None and _alike(one, two):
        return b.flatten(add(b, one, two))
    fresh = _fresh(x, y) or _fresh(y, x)
    found = None if fresh else sum_of_maps(b, x, y)
    if found is not None:
        return found
    if x.terms is not None or y.terms is not None:
        known = [v.terms[1] for v in (x, y) if v.terms is not None]
        random = (v if v.terms is None else v.terms[0] for v in (x, y))
        return add_known(b, add(b, *random), functools.reduce(sum_of_known, known))
    if not fresh:
        raise b.refusal(
            "a sum of values that are not independent",
            "Neither ends in a layer of its own after the point where they part, so there is a "
            "covariance between them that the recursion does not carry.",
            "Put an NTK layer at the end of one of the branches.",
        )
    return b.step(
        WeightedSum((1.0, 1.0)),
        (x, y),
        gaussian=x.gaussian and y.gaussian,
        sources=x.sources | y.sources if x.centred and y.centred else frozenset(),
    )


def add_known(b: Builder, x: Value, known: Data) -> Value:
    """The sum of features and known ones, `[1 or N, …]` of the shape of a sample.

    Both terms are kept apart: known features may be added to known ones, and have a known mean over
    channels.
    """
    random, before = x.terms or (x, None)
    if before is not None:
        known = sum_of_known(known, before)
    return replace(add(b, random, b.value(known, "a sum", x.axis)), terms=(random, known))


def sum_of_known(x: Data, y: Data) -> Data:
    """`x + y`."""
    first = x.first + y.first
    same = x.first is x.second and y.first is y.second
    return Data(first, first if same else x.second + y.second)


def _alike(x: Value, y: Value) -> bool:
    return x.shape == y.shape and x.axis == y.axis


def _fresh(a: Value, b: Value) -> bool:
    """Whether a is a sum of outputs of layers that b knows nothing of.

    Then both E[a b] and the products of their gradients vanish: each term holds one of those
    layers' weights exactly once, and these are independent and of zero mean.
    """
    return a.centred and not (a.sources & b.ancestors)
