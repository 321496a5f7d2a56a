"""Functions that only move entries: slices, permutes, views, flips, padding with zeros, unfold.

One rule reads all of them. It applies the function to labels, a different number for each entry of
a sample; the numbers in the result show which entry of x each entry of y is. A further function is
a line in the table of `_position_functions.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operations import Gather, IndependentUnits
from ._builder import Builder
from ._values import Data, Elementwise, Features, Joined, Units, Value, two_axes

Mover = Callable[[Tensor], Tensor]
"""A function of a batch `[N, ...]` whose result `[N, ...]` has entries of the batch, or zeros."""


@dataclass(frozen=True)
class Arrangement:
    """The effect of a function that moves entries: which entry of x each entry of y is.

    Attributes:
        spatial: The sizes of the axes of positions of y.
        axis: The index of the channels among the axes of a sample of y.
        channels: The channels of x that are the channels of y.
        sources: For each tap the positions of x at the positions of y, as in `Gather`.
        units: If channels of x become positions of y, the number of the unit at each position of
            y; empty if all positions have the same channels.
        size: The number of channels of y: one for each of `channels` and each tap.
    """

    spatial: tuple[int, ...]
    axis: int
    channels: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    units: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """The number of channels of y."""
        return len(self.channels) * len(self.sources)


def rearranged(b: Builder, x: Any, function: Mover, what: str) -> Features:
    """Return features after a function that only moves entries.

    Args:
        b: The builder that collects steps.
        x: The features.
        function: The function, which is called with a batch of two samples.
        what: The name of the function, for messages.
    """
    features = b.value(x, what) if isinstance(x, Data) else x
    shape, axis = tuple(features.shape), features.axis
    found = None
    if shape[axis] == 1:  # with two channels, if the function takes them, their axis is certain
        with contextlib.suppress(ValueError):
            found = _analysed(b, function, (*shape[:axis], 2, *shape[axis + 1 :]), axis, what)
    if found is not None and found.channels == (0, 1) and not found.units:
        found = replace(found, channels=(0,))
    else:
        found = _analysed(b, function, shape, axis, what)
    return _arranged(b, features, found, what)


def flatten_all(b: Builder, x: Any) -> Features:
    """Return features with all positions and channels as features."""
    if isinstance(x, Joined):
        return Joined(tuple(flatten_all(b, p) for p in x.parts))  # type: ignore[misc]
    if isinstance(x, Elementwise):
        # An elementwise function can be applied before the flattening as well as after it.
        return Elementwise(x.base, x.function, x.lookup, x.factor, bool(x.base.spatial), x.node)
    return b.flatten(b.value(x, "a flattening"))


def _arranged(b: Builder, x: Features, new: Arrangement, what: str) -> Features:
    if isinstance(x, Joined) and not new.units:
        return _arranged_parts(b, x, new, what)
    whole = len(new.channels) == x.shape[x.axis]
    if whole and len(new.sources) > 1 and _flattens(new, x):
        return flatten_all(b, x)
    if isinstance(x, Elementwise) and not x.flat and _moves_only(new):
        moved = _arranged(b, x.base, new, what)
        assert isinstance(moved, Value)
        return replace(x, base=moved, made=None, unscaled=None)
    v = b.value(x, what)
    if v.multiple is not None:  # so that the result is known to be a multiple, too
        return b.scale(_arranged(b, v.multiple[0], new, what), v.multiple[1])
    if v.unflattened is None:
        _check_channels(b, new, v, what)
    operation = Gather(two_axes(new.spatial), new.sources)
    kept: dict[str, Any] = {"spatial": new.spatial, "axis": new.axis, "channels": new.size}
    if v.unflattened is not None:
        if new.channels == tuple(range(v.channels)) and not new.spatial:
            return v
        raise b.refusal(
            what,
            "Its input is flattened, and features from different positions have different kernels.",
            "Apply it before the flattening.",
        )
    if new.units:
        return _as_positions(b, v, new, operation, what)
    roots = frozenset((layer, _selected_units(units, new.channels)) for layer, units in v.roots)
    if len(new.sources) == 1 and v.terms is not None:
        random, known = v.terms
        kept["terms"] = b.value(_arranged(b, random, new, what)), _arranged_known(known, new, v)
    if operation.trivial and operation.positions == v.positions:
        return replace(
            v,
            **kept,
            roots=roots,
            ungained=None if v.ungained is None else replace(v.ungained, **kept),
            taps=None,
        )
    made = b.linear_step(operation, v, new.spatial)
    if len(new.sources) == 1:
        made = replace(made, **kept, roots=roots)
        if len(new.channels) < v.channels or list(new.channels) != sorted(new.channels):
            return made
        return replace(made, image=(v, lambda: _matrices(b, new.sources[0], v)))
    # The taps of a channel have different variances, so `made` is not Gaussian; `taps` is.
    separate = Gather(
        two_axes((len(new.sources), *new.spatial)), (tuple(i for t in new.sources for i in t),)
    )
    taps = b.linear_step(separate, v, (len(new.sources), *new.spatial))
    roots = frozenset((layer, None) for layer, _ in v.roots)
    return replace(made, **kept, gaussian=False, alike=False, roots=roots, taps=taps)


def _as_positions(b: Builder, v: Value, new: Arrangement, operation: Gather, what: str) -> Value:
    """Return a value some of whose independent channels have become positions."""
    if not (v.gaussian and v.alike) or v.gained:
        raise b.refusal(
            f"{what}, which makes positions of channels",
            "Channels are independent only if they are outputs of a layer.",
            "Apply it before the activation, or after another layer.",
        )
    if not (operation.trivial and operation.positions == v.positions):
        v = b.linear_step(operation, v, new.spatial)
    made = b.linear_step(IndependentUnits(new.units), v, new.spatial)
    roots = frozenset((layer, None) for layer, _ in v.roots)
    return replace(made, channels=new.size, axis=new.axis, roots=roots)


def _arranged_parts(b: Builder, joined: Joined, new: Arrangement, what: str) -> Features:
    """Arrange the parts of concatenated channels one by one."""
    parts: list[Any] = []
    start = 0
    for part in joined.parts:
        count = part.shape[part.axis]
        mine = tuple(c - start for c in new.channels if start <= c < start + count)
        if mine:
            parts.append(_arranged(b, part, replace(new, channels=mine), what))
        start += count
    if sorted(new.channels) != list(new.channels):
        raise b.refusal(
            f"{what} of concatenated channels",
            "It changes their order.",
            "Rearrange each part before they are concatenated.",
        )
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


def _matrices(b: Builder, sources: tuple[int, ...], v: Value) -> tuple[Tensor, Tensor]:
    """Return the matrix `[1, S_out, S_in]` that reads positions from others, for x1 and for x2."""
    count = math.prod(v.spatial)
    read = torch.tensor(sources)
    matrix = (read[:, None] == torch.arange(count)).to(b.device, b.dtype)[None]
    return matrix, matrix


def _arranged_known(known: Data, new: Arrangement, v: Value) -> Data:
    """Return known features, which have the shape of v, in the new arrangement."""

    def moved(t: Tensor) -> Tensor:
        t = t.movedim(1 + v.axis, 1).reshape(len(t), v.channels, -1)
        t = F.pad(t, (0, 1))[:, list(new.channels)][..., list(new.sources[0])]  # the last one is 0
        return t.reshape(len(t), len(new.channels), *new.spatial).movedim(1, 1 + new.axis)

    return known.map(moved)


def _moves_only(new: Arrangement) -> bool:
    """Whether every position of y is a position of x, and none is a zero."""
    return len(new.sources) == 1 and min(new.sources[0], default=0) >= 0


def _flattens(new: Arrangement, x: Any) -> bool:
    """Whether all positions have become features, as in a flattening."""
    count = math.prod(x.shape) // x.shape[x.axis]
    return not new.spatial and sorted(t[0] for t in new.sources) == list(range(count))


def _check_channels(b: Builder, new: Arrangement, v: Value, what: str) -> None:
    if len(new.channels) < v.channels and not v.alike:
        raise b.refusal(
            f"{what} that takes some channels of several kinds",
            "The channels have different kernels, and only the mean of these is known.",
            "Apply it to the parts before they are joined, or put an NTK layer between.",
        )
    if len(set(new.channels)) < len(new.channels):
        raise b.refusal(
            f"{what} that repeats channels",
            "Equal channels are not independent.",
            "Use each channel once.",
        )


def _selected_units(units: Units, channels: tuple[int, ...]) -> Units:
    """Return which units of a layer the selected `channels` are, if all channels are `units`."""
    if units is None:
        return None
    if isinstance(units, tuple):
        found = tuple(units[c] for c in channels)
    else:
        found = tuple(units + c for c in channels)
    return found[0] if found == tuple(range(found[0], found[0] + len(found))) else found


# -- from labels to an arrangement -----------------------------------------------------------


def _analysed(
    b: Builder, function: Mover, shape: tuple[int, ...], axis: int, what: str
) -> Arrangement:
    """Return what a function does to samples of `shape` that have their channels on `axis`."""
    try:
        out = function(_labels(shape, axis).to(b.device))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:  # as in the forward
        raise b.refusal(
            f"{what} of samples {shape}",
            f"{error}.",
            "Correct the call: it fails on samples of this shape.",
        ) from error
    channels, positions = shape[axis], math.prod(shape) // shape[axis]
    per_sample = channels * positions
    if isinstance(out, Tensor) and out.ndim == 1:
        raise _without_channels(b, what)
    if not isinstance(out, Tensor) or out.ndim < 2 or out.shape[0] != 2 or 0 in out.shape:
        raise b.refusal(
            what,
            "Its result does not have the samples on axis 0, or is empty.",
            "Do not change axis 0.",
        )
    entries = out.round().long().cpu() - 1
    zero = entries < 0
    own = torch.arange(2).view(2, *[1] * (out.ndim - 1))
    if bool(((entries // per_sample != own) & ~zero).any()):
        raise b.refusal(what, "It mixes the samples of a batch.", "Do not change axis 0.")
    entries, zero = entries[0] % per_sample, zero[0]
    if bool(zero.all()):
        raise b.refusal(
            what, "All entries of its result are zeros.", "Select positions that are in the input."
        )
    c, s = entries // positions, entries % positions
    at = _channel_axis(b, c, zero, axis, shape, what)
    rest = tuple(n for i, n in enumerate(c.shape) if i != at)
    c, s, zero = (a.movedim(at, 0).reshape(a.shape[at], -1) for a in (c, s, zero))
    units = _units(c, s, zero)
    if units:
        return Arrangement(rest, at, tuple(c[:, 0].tolist()), (tuple(s[0].tolist()),), units)
    return Arrangement(rest, at, *_taps(b, c, s, zero, what))


def _labels(shape: tuple[int, ...], axis: int) -> Tensor:
    """Return two samples whose entries are numbered from 1, by sample, channel and position."""
    channels = shape[axis]
    positions = tuple(n for i, n in enumerate(shape) if i != axis)
    numbers = torch.arange(2 * math.prod(shape), dtype=torch.float64) + 1
    return numbers.view(2, channels, *positions).movedim(1, axis + 1)


def _channel_axis(
    b: Builder, c: Tensor, zero: Tensor, axis: int, shape: tuple[int, ...], what: str
) -> int:
    """Return the axis of the result along which the channels differ."""
    varies = [i for i in range(c.ndim) if _differs_along(c, zero, i)]
    if len(varies) == 1:
        return varies[0]
    if axis in varies:  # some channels become positions, and their axis stays first or last
        return c.ndim - 1 if 0 < axis == len(shape) - 1 else axis
    if varies:
        raise b.refusal(
            f"{what}, which puts channels on several axes",
            "The features of a position must stay on one axis.",
            "Split axes of positions, and not the axis of the channels.",
        )
    # There is one channel. Its axis has length 1, and is where it was before if that has, too.
    if c.ndim == 1 and c.numel() == math.prod(shape):
        return 0
    if axis < c.ndim and c.shape[axis] == 1:
        return axis
    ones = [i for i, n in enumerate(c.shape) if n == 1]
    if len(ones) == 1:
        return ones[0]
    raise _without_channels(b, what)


def _without_channels(b: Builder, what: str) -> ValueError:
    return b.refusal(
        f"{what} that leaves no axis of channels",
        "A single channel is random, however wide the network is.",
        "Keep the axis, as x[:, :1] does.",
    )


def _differs_along(c: Tensor, zero: Tensor, axis: int) -> bool:
    least = c.masked_fill(zero, c.max() + 1).amin(axis)
    most = c.masked_fill(zero, -1).amax(axis)
    return bool((least < most).any())


def _units(c: Tensor, s: Tensor, zero: Tensor) -> tuple[int, ...]:
    """Return the unit at each position, from labels `[channels of y, positions of y]`.

    The result is empty if all positions have the same unit, or if the function does not do the
    same to every channel.
    """
    if bool(zero.any()) or bool((c == c[:, :1]).all()) or bool((s != s[:1]).any()):
        return ()
    numbers, units = torch.unique(c[0], return_inverse=True)
    first = [int((units == u).nonzero()[0]) for u in range(len(numbers))]
    same = bool((c == c[:, first][:, units]).all())
    apart = len(set(c[:, first].flatten().tolist())) == c.shape[0] * len(first)
    return tuple(units.tolist()) if same and apart else ()


def _taps(
    b: Builder, c: Tensor, s: Tensor, zero: Tensor, what: str
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return the channels, and each tap's sources, from labels `[channels, positions]` of y."""
    labelled = c.masked_fill(zero, -1)
    channel = labelled.amax(1)  # of each row; -1 where it is all zeros
    mixed = bool(((labelled != channel[:, None]) & ~zero).any()) or bool((channel < 0).any())
    order = channel.argsort(stable=True)
    numbers, counts = torch.unique(channel, return_counts=True)
    if not mixed and len(set(counts.tolist())) == 1:
        taps = int(counts[0])
        sources = s.masked_fill(zero, -1)[order].view(len(numbers), taps, -1)
        if bool((sources == sources[:1]).all()):
            which = numbers if taps > 1 else channel
            return tuple(which.tolist()), tuple(tuple(t) for t in sources[0].tolist())
    raise b.refusal(
        f"{what}, which does not do the same to every channel",
        "Channels must stay exchangeable in the limit.",
        "Move positions only, or put an NTK layer between.",
    )
