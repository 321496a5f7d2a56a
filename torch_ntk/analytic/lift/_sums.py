"""Sums of branches, which must be uncorrelated."""

from __future__ import annotations

import functools
from dataclasses import replace

from ..operations import WeightedSum
from ._builder import Builder
from ._linear_maps import sum_of_maps
from ._values import Data, Value


def add(b: Builder, x: Value, y: Value) -> Value:
    """Return the sum of two uncorrelated values, or of linear maps of one value's positions."""
    if not _same_shape(x, y):
        raise b.refusal(
            f"a sum of features of shapes {x.shape} and {y.shape} with channels on axes "
            f"{x.axis + 1} and {y.axis + 1}",
            "Only values of the same shape can be added.",
            "Permute or average one of them first.",
        )
    one, two = x.unflattened, y.unflattened
    if one is not None and two is not None and _same_shape(one, two):
        return b.flatten(add(b, one, two))
    uncorrelated = _has_separate_layers(x, y) or _has_separate_layers(y, x)
    found = None if uncorrelated else sum_of_maps(b, x, y)
    if found is not None:
        return found
    if x.terms is not None or y.terms is not None:
        known = [v.terms[1] for v in (x, y) if v.terms is not None]
        random = (v if v.terms is None else v.terms[0] for v in (x, y))
        return add_known(b, add(b, *random), functools.reduce(sum_of_known, known))
    if not uncorrelated:
        raise b.refusal(
            "a sum of values that are not independent",
            "Neither ends in a separate layer after the point where they branch, so that they have "
            "a covariance that the recursion does not contain.",
            "Put an NTK layer at the end of one of the branches.",
        )
    sources = x.sources | y.sources if x.centred and y.centred else frozenset[int]()
    made = b.step(WeightedSum((1.0, 1.0)), (x, y))
    return replace(made, gaussian=x.gaussian and y.gaussian, sources=sources)


def add_known(b: Builder, x: Value, known: Data) -> Value:
    """Return the sum of random features and a known tensor `[1 or N, …]` of the same shape.

    The result stores both terms, because further known tensors can be added to the known term, and
    a normalization needs its mean over channels.
    """
    random, before = x.terms or (x, None)
    if before is not None:
        known = sum_of_known(known, before)
    return replace(add(b, random, b.value(known, "a sum", x.axis)), terms=(random, known))


def sum_of_known(x: Data, y: Data) -> Data:
    """Return `x + y` of two known values."""
    first = x.first + y.first
    same = x.first is x.second and y.first is y.second
    return Data(first, first if same else x.second + y.second)


def _same_shape(x: Value, y: Value) -> bool:
    return x.shape == y.shape and x.axis == y.axis


def _has_separate_layers(a: Value, b: Value) -> bool:
    """Whether a is a sum of outputs of layers on which b does not depend.

    Then E[a b] and the products of their gradients are 0: each term contains exactly one of those
    layers' weights, and these are independent and have zero mean.
    """
    return a.centred and not (a.sources & b.ancestors)
