"""Elementwise scales and shifts: `x * w` and `x + b`, with broadcasting.

Entry k of the parameter is used at all positions t over which it is broadcast. Its feature there is
x[k, t] for a scale, and 1 for a shift. Each entry is a separate group with one feature and one
unit, so that forming J costs very little, and Gram matrices would save nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._rule import Rule, Use, argument


class ScaleUse(Use):
    """`y = x * w`; `along` are the dimensions of y to which those of w correspond."""

    inputs = units = 1

    def __init__(self, source: Tensor, weight: Tensor, along: Sequence[int]) -> None:
        self.source, self.weight = source, weight
        self.along = tuple(along)
        self.groups = weight.numel()

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, G, T, 1]`."""
        return self._by_entry(source.to(self.weight.dtype), 1)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, G, T, 1]`."""
        return self._by_entry(b, 2)

    def _by_entry(self, t: Tensor, batch: int) -> Tensor:
        """Return `t` with the dimensions after the first `batch` as `[…, G, T, 1]`."""
        own = [d + batch for d in self.along]
        others = [d for d in range(batch, t.ndim) if d not in own]
        t = t.permute(*range(batch), *own, *others)
        return t.reshape(*t.shape[:batch], self.groups, -1, 1)

    def jacobian(self, a: Tensor, b: Tensor) -> Tensor:
        """Return cotangents times features, summed over positions, without a copy."""
        b, a = b.squeeze(4), a.squeeze(3).unsqueeze(1)
        if a.stride(3) == 0 or a.shape[3] == 1:  # one feature at all positions
            return b.sum(3).mul_(a[..., 0])
        return (b * a).sum(3)


class ShiftUse(ScaleUse):
    """`y = x + alpha * w`, whose feature is alpha at every position."""

    def __init__(
        self, result: Tensor, weight: Tensor, along: Sequence[int], alpha: float = 1.0
    ) -> None:
        # A single number represents the features of a sample; `features` expands it.
        super().__init__(result.new_full((), alpha), weight, along)
        self.positions_each = result.numel() // self.groups

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, G, T, 1]` as an expanded view."""
        one = source.to(self.weight.dtype).view(-1, 1, 1, 1)
        return one.expand(-1, self.groups, self.positions_each, 1)


def broadcast_along(weight: Tensor, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the dimensions of `shape` to which those of `weight` correspond by broadcasting.

    The result is None if it cannot be broadcast to that shape, or has no entries.
    """
    lead = len(shape) - weight.ndim
    if (
        lead < 0
        or not weight.numel()
        or any(w not in (1, s) for w, s in zip(weight.shape, shape[lead:], strict=True))
    ):
        return None
    return tuple(lead + d for d in range(weight.ndim) if shape[lead + d] == weight.shape[d])


def _common(a: Tensor, b: Tensor) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    return shape


def scale(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `torch.mul(input, other)`; each factor may be the parameter."""
    a, b = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or "out" in kwargs:
        return ()
    shape = _common(a, b)
    uses = []
    for weight, other in ((a, b), (b, a)):
        along = broadcast_along(weight, shape)
        if along is not None:
            uses.append(ScaleUse(other.expand(shape), weight, along))
    return uses


def shift(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `torch.add(input, other, alpha=1)`; each term may be the parameter."""
    a, b = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")
    alpha = kwargs.get("alpha", 1)
    numbers = (bool, int, float)
    if not isinstance(a, Tensor) or not isinstance(alpha, numbers) or "out" in kwargs:
        return ()
    if not isinstance(b, Tensor):
        return ()
    shape = _common(a, b)
    uses = []
    for weight, factor in ((a, 1.0), (b, float(alpha))):
        along = broadcast_along(weight, shape)
        if along is not None:
            uses.append(ShiftUse(weight.new_empty(()).expand(shape), weight, along, factor))
    return uses


CALLS: dict[Any, Rule] = {
    torch.mul: scale,
    torch.multiply: scale,
    Tensor.mul: scale,
    Tensor.multiply: scale,
    Tensor.__mul__: scale,
    Tensor.__rmul__: scale,
    torch.add: shift,
    Tensor.add: shift,
    Tensor.__add__: shift,
    Tensor.__radd__: shift,
}
