"""Concatenation and stacking, along the channels or along an axis of positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ._arrange import rearranged
from ._builder import Builder
from ._elementwise import added
from ._values import Data, Elementwise, Features, Joined, Value, sample_shape


def concatenated(b: Builder, tensors: Sequence[Any], dim: int = 0) -> Features:
    """Return `torch.cat` of features along the axis of the channels or an axis of positions."""
    like = next(t for t in tensors if not isinstance(t, Data))
    axes, channels = len(like.shape) + 1, 1 + like.axis
    if not -axes <= dim < axes or dim % axes == 0:
        raise b.refusal(
            f"a concatenation along axis {dim}", "Samples must stay on axis 0.", "Use another axis."
        )
    place = dim % axes
    shapes = {tuple(n for i, n in enumerate(sample_shape(t), 1) if i != place) for t in tensors}
    if len(shapes) > 1 or any(not isinstance(t, Data) and t.axis != like.axis for t in tensors):
        where = "positions" if place == channels else "channels or other positions"
        raise b.refusal(
            f"a concatenation of features of different {where}",
            "Their shapes must agree except on the axis of the concatenation.",
            "Bring them to such shapes first.",
        )
    if place == channels:
        return _channels(b, tensors, like.axis)
    return _positions(b, tensors, place)


def stacked(b: Builder, tensors: Sequence[Any], dim: int = 0) -> Features:
    """Return `torch.stack` of features along a new axis of positions."""
    like = next(t for t in tensors if not isinstance(t, Data))
    axes = len(like.shape) + 2
    if not -axes <= dim < axes or dim % axes == 0:
        raise b.refusal(
            f"a stack along axis {dim}",
            "Samples must stay on axis 0.",
            "Stack along another axis; for a mean of branches write their sum.",
        )
    place = dim % axes
    unsqueezed = [_changed(b, t, lambda t: t.unsqueeze(place), "a stack") for t in tensors]
    return concatenated(b, unsqueezed, place)


def _channels(b: Builder, tensors: Sequence[Any], axis: int) -> Joined:
    parts: list[Value | Elementwise] = []
    for t in tensors:
        part = b.value(t, "a concatenation", axis) if isinstance(t, Data) else t
        parts.extend(part.parts if isinstance(part, Joined) else [part])
    return Joined(tuple(parts))


def _positions(b: Builder, tensors: Sequence[Any], place: int) -> Features:
    """Return the sum of all tensors, each padded with zeros at the positions of the others."""
    sizes = [sample_shape(t)[place - 1] for t in tensors]
    ends = len(sample_shape(tensors[0])) - place
    parts = []
    for i, t in enumerate(tensors):
        around = [0, 0] * ends + [sum(sizes[:i]), sum(sizes[i + 1 :])]
        parts.append(_changed(b, t, functools.partial(_padded, around), "a concatenation"))
    found: Features = functools.reduce(lambda x, y: added(b, x, y), parts)
    return found


def _padded(around: list[int], t: Tensor) -> Tensor:
    return F.pad(t, around)


def _changed(b: Builder, x: Any, function: Callable[[Tensor], Tensor], what: str) -> Any:
    """Apply a function that only moves entries, to random features or to a known tensor."""
    return x.map(function) if isinstance(x, Data) else rearranged(b, x, function, what)
