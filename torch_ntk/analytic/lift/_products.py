"""Products of features: of independent branches, with gates, and with known tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..operations import Product
from ._arrange import rearranged
from ._builder import Builder
from ._coupling import coupled
from ._linear_maps import weighted
from ._values import Data, Units, Value


def product(b: Builder, x: Any, y: Any) -> Value:
    """Return the product of two values that are independent, channel by channel.

    Two values are independent if their last layers (`Value.roots`) are different ones: the
    covariances before these layers are deterministic in the limit, so each value is random only
    through its own last layer. Different channels of the same layer are independent, too, such as
    the halves of a gated linear unit. So is a gate for each channel that a separate layer computes
    (squeeze and excitation).
    """
    first, second = matched(b, b.value(x, "a product"), b.value(y, "a product"))
    whole = first.unflattened, second.unflattened
    if whole[0] is not None and whole[1] is not None:
        return b.flatten(product(b, *whole))
    if first.shape != second.shape or first.axis != second.axis:
        raise b.refusal(
            f"a product of features of shapes {first.shape} and {second.shape}",
            "Only values of the same shape, and gates with one position, can be multiplied.",
            "Bring both to the same shape, or the gate to one position.",
        )
    shared = _shared(first, second)
    if shared is not None or not (first.roots and second.roots):
        raise b.refusal(
            "a product of values that are not independent",
            "The same units of one layer may come last before both."
            if shared is not None
            else "One of them comes from no random layer, and its number of channels is fixed.",
            "Put an NTK layer at the end of one of the branches; a product of functions of one "
            "value may be written as one function of it.",
        )
    if not (first.alike or second.alike):
        raise b.refusal(
            "a product of values that both have channels of several kinds",
            "Only the means of their kernels are known.",
            "Multiply the parts before they are joined.",
        )
    made = b.step(Product(), (first, second))
    # Every term of the product contains each weight of these layers once.
    return replace(made, sources=first.sources or second.sources)


def _shared(first: Value, second: Value) -> int | None:
    """Return a layer of which both values may have the same units, or None."""
    for layer, units in first.roots:
        for other, others in second.roots:
            if layer == other and _meet(units, others, first.channels):
                return layer
    return None


def _meet(one: Units, two: Units, channels: int) -> bool:
    """Whether a channel may be the same unit in both."""
    if one is None or two is None:
        return True
    each = (u if isinstance(u, tuple) else range(u, u + channels) for u in (one, two))
    return any(a == b for a, b in zip(*each, strict=False))


def matched(b: Builder, first: Value, second: Value) -> tuple[Value, Value]:
    """Repeat the positions of a value along axes on which it has one and the other has several."""
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
    """Return `x * y` or `x / y` of features and a known tensor, such as a mask or a length."""
    if isinstance(x, Data) and name == "div":
        raise b.refusal(
            "a quotient by features",
            "Its expectation does not exist.",
            "Multiply by a bounded function of them, torch.sigmoid for example.",
        )
    known, random = (x, y) if isinstance(x, Data) else (y, x)
    if not known.is_tensor:
        raise coupled(f"a {name} with a number at {b.node!r} that differs between x1 and x2")
    if name == "div":
        known = Data(*(1 / _floating(t) for t in (known.first, known.second)))
    for t in (known.first, known.second):
        if not bool(torch.isfinite(_floating(t)).all()):
            raise b.refusal(
                f"a {name} with a known tensor that is not finite",
                "It contains infinite or NaN entries; a divisor may contain 0.",
                "Mask those entries, or clamp the divisor.",
            )
    return weighted(b, random, known, "a product")


def _floating(t: Tensor) -> Tensor:
    return t if t.is_floating_point() else t.double()
