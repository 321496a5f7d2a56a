"""Products of features: of independent branches, of gates, and with what is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..operations import Product
from ._arrange import rearranged
from ._builder import Builder
from ._linear_maps import weighted
from ._values import Data, Units, Value


def product(b: Builder, x: Any, y: Any) -> Value:
    """The product of two values whose features are independent, channel by channel.

    They are where different layers come last before either, whatever lies before those: given
    the covariances there, which are deterministic in the limit, both are random through their own
    last layer alone. So are different channels of one layer, as the halves of a gated linear
    unit, and a gate for each channel that a layer of its own has made (squeeze and excitation).
    """
    first, second = matched(b, b.value(x, "a product"), b.value(y, "a product"))
    whole = first.unflattened, second.unflattened
    if whole[0] is not None and whole[1] is not None:
        return b.flatten(product(b, *whole))
    if first.shape != second.shape or first.axis != second.axis:
        raise b.refusal(
            f"a product of features of shapes {first.shape} and {second.shape}",
            "Only values of one shape, and gates of one position, can be multiplied in the limit.",
            "Bring both to one shape, or the gate to one position.",
        )
    shared = _shared(first, second)
    if shared is not None or not (first.roots and second.roots):
        raise b.refusal(
            "a product of values that are not independent",
            "The same units of one layer may come last before both."
            if shared is not None
            else "One of them is no value of random layers, and has a fixed number of channels.",
            "Put an NTK layer at the end of one of the branches; a product of functions of one "
            "value may be written as one function of it.",
        )
    if not (first.alike or second.alike):
        raise b.refusal(
            "a product of values that both have channels of several kinds",
            "Only the means of their kernels are known.",
            "Multiply before joining.",
        )
    return b.step(
        Product(),
        (first, second),
        # Every term contains each weight of these layers once.
        sources=first.sources or second.sources,
    )


def _shared(first: Value, second: Value) -> int | None:
    """A layer of which the same units may be last before both values."""
    for layer, units in first.roots:
        for other, others in second.roots:
            if layer == other and _meet(units, others, first.channels):
                return layer
    return None


def _meet(one: Units, two: Units, channels: int) -> bool:
    """Whether some channel may be of the same unit in both."""
    if one is None or two is None:
        return True
    each = (u if isinstance(u, tuple) else range(u, u + channels) for u in (one, two))
    return any(a == b for a, b in zip(*each, strict=False))


def matched(b: Builder, first: Value, second: Value) -> tuple[Value, Value]:
    """Values with positions repeated, where one of them has one position on an axis."""
    if first.shape == second.shape or len(first.shape) != len(second.shape):
        return first, second
    if first.axis != second.axis or first.channels != second.channels:
        return first, second
    try:
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return first, second

    def repeated(v: Value) -> Value:
        if v.shape == tuple(shape):
            return v
        made = rearranged(b, v, lambda t: t.expand(2, *shape), "a broadcast")
        return b.value(made)

    return repeated(first), repeated(second)


def with_known(
    b: Builder, x: Any, y: Any, operation: Callable[[Any, Any], Any], name: str
) -> Value:
    """`x * y` or `x / y` where one is known and not a number: a mask, a length."""
    if isinstance(x, Data) and name == "div":
        raise b.refusal(
            "a quotient by features",
            "Its expectation does not exist.",
            "Multiply by a bounded function of them, torch.sigmoid for example.",
        )
    known, random = (x, y) if isinstance(x, Data) else (y, x)
    if name == "div":
        known = Data(*(1 / _floating(t) for t in (known.first, known.second)))
    for t in (known.first, known.second):
        if not bool(torch.isfinite(_floating(t)).all()):
            raise b.refusal(
                f"a {name} with a known tensor that is not finite",
                "It has 0 or NaN.",
                "Mask those entries, or clamp the divisor.",
            )
    return weighted(b, random, known, "a product")


def _floating(t: Tensor) -> Tensor:
    return t if t.is_floating_point() else t.double()
