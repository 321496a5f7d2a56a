"""Convolutions of one to three dimensions, with groups, stride, dilation and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bias import with_bias
from ._rule import Rule, Use, argument


class ConvUse(Use):
    """A convolution. Features are the patches under the filter, and positions the output pixels.

    Attributes:
        channels_last: Whether a pass has the channels last in memory, as in two dimensions on a
            CPU (see `_parameter_uses.perturbed`). The channel is then the last index of a patch.
    """

    def __init__(
        self,
        source: Tensor,
        weight: Tensor,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        self.source, self.weight = source, weight
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = groups
        self.inputs = prod(weight.shape[1:])
        self.units = weight.shape[0] // groups
        self.channels_last = weight.ndim == 4 and weight.device.type == "cpu"

    def features(self, source: Tensor) -> Tensor:
        """Return the patches A `[N, G, T, a]`, copied once from strided views."""
        return self._patches(self._images(source))

    def _images(self, source: Tensor) -> Tensor:
        dims = self.weight.ndim - 2
        return source.reshape(source.shape[0], -1, *source.shape[-dims - 1 :])

    def _patches(self, images: Tensor) -> Tensor:
        kernel = tuple(self.weight.shape[2:])
        window = Window(kernel, self.stride, self.padding, self.dilation)
        return patches(images, window, self.groups, channels_last=self.channels_last)

    def held(self, source: Tensor) -> Tensor:
        """Return the images, which are smaller than their patches unless the stride is large."""
        if self.groups > 1:
            return self.features(source)
        # A view would keep the whole tensor of which it is a part.
        is_part = source.untyped_storage().nbytes() > source.numel() * source.element_size()
        return self._images(source.clone() if is_part else source)

    def held_size(self, source: torch.Size, positions: int) -> int:
        """Return the number of entries of an image, or of its patches with groups."""
        return source.numel() if self.groups == 1 else super().held_size(source, positions)

    @property
    def steps(self) -> int:
        """The number of channels, each of which is a step with all its taps."""
        return self.weight.shape[1] if self.groups == 1 else self.inputs

    def narrowed(self, kept: Tensor, start: int, stop: int) -> Tensor:
        """Return the patches of some channels."""
        if self.groups > 1:
            return super().narrowed(kept, start, stop)
        return self._patches(kept[:, :, start:stop])

    def narrowed_entries(self, packed: Tensor, start: int, stop: int) -> Tensor:
        """Return the entries of some channels, whose index is last or first in a patch."""
        if not self.channels_last:
            return super().narrowed_entries(packed, start, stop)
        split = packed.reshape(len(packed), -1, self.weight.shape[1])
        return split[..., start:stop].flatten(1)

    def unpack(self, jacobian: Tensor) -> Tensor:
        """Reorder `[N, O, G, b, a]` to the weight's layout, in which channels precede taps."""
        if not self.channels_last:
            return jacobian.flatten(2)
        channels = self.weight.shape[1]
        split = jacobian.reshape(*jacobian.shape[:4], -1, channels)
        return split.transpose(4, 5).flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """Undo `unpack`, for a gradient `[p]`."""
        split = gradient.reshape(self.groups, self.units, self.weight.shape[1], -1)
        return (split.transpose(2, 3) if self.channels_last else split).flatten(2)

    def applied(self, source: Tensor, vectors: Tensor) -> Tensor:
        """Return features times vectors: a convolution with the vectors as filters."""
        if self.groups > 1:
            return super().applied(source, vectors)
        channels, kernel = self.weight.shape[1], self.weight.shape[2:]
        rows = vectors[0].T
        if self.channels_last:
            filters = rows.reshape(-1, *kernel, channels).movedim(-1, 1)
        else:
            filters = rows.reshape(-1, channels, *kernel)
        images = self._images(source)
        x, padding = images.flatten(0, 1), tuple(before for before, _ in self.padding)
        if any(before != after for before, after in self.padding):
            x = F.pad(x, [p for before_after in reversed(self.padding) for p in before_after])
            padding = (0,) * len(kernel)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
        out = convolve(x, filters, None, self.stride, padding, self.dilation)
        out = out.reshape(*images.shape[:2], len(rows), -1)
        return out.permute(0, 1, 3, 2).reshape(len(images), 1, -1, len(rows))

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, G, T, b]` for cotangents `[N, O, (images,) C, *out]`."""
        dims = self.weight.ndim - 2
        n, o = b.shape[:2]
        b = b.reshape(n, o, -1, self.groups, self.units, prod(b.shape[-dims:]))
        return b.permute(0, 1, 3, 2, 5, 4).reshape(n, o, self.groups, -1, self.units)


@dataclass(frozen=True)
class Window:
    """The geometry of a filter, for each dimension; padding is before and after the image."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


def patches(
    images: Tensor,
    window: Window,
    groups: int,
    most: tuple[int, ...] | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Return the patches of images `[N, M, C, *size]`, `[N, G, M·places, C/G·taps]`.

    They are taken at all places of the filter, or at `most` so many in each dimension. With
    `channels_last` the channel is the last index of a patch, and not the first.
    """
    kernel, dims = window.kernel, len(window.kernel)
    n = images.shape[0]
    x = images.flatten(0, 1)
    flat = [p for before_after in reversed(window.padding) for p in before_after]
    x = F.pad(x, flat) if any(flat) else x
    for d in range(dims):
        span = (kernel[d] - 1) * window.dilation[d] + 1
        x = x.unfold(2 + d, span, window.stride[d])[..., :: window.dilation[d]]
        if most is not None:
            x = x.narrow(2 + d, 0, most[d])
    channels, out = x.shape[1], x.shape[2 : 2 + dims]
    x = x.reshape(n, -1, groups, channels // groups, *out, *kernel)
    # [N, M, G, C/G, *out, *kernel] to [N, G, M·out, C/G·kernel], or kernel·C/G
    axes = list(range(x.ndim))
    positions, taps = axes[4 : 4 + dims], axes[4 + dims :]
    x = x.permute(0, 2, 1, *positions, *((*taps, 3) if channels_last else (3, *taps)))
    return x.reshape(n, groups, -1, channels // groups * prod(kernel))


def _call(dims: int) -> Rule:
    def conv(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
        source, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        stride = as_tuple(argument(args, kwargs, 3, "stride"), dims, 1)
        padding = argument(args, kwargs, 4, "padding")
        dilation = as_tuple(argument(args, kwargs, 5, "dilation"), dims, 1)
        groups = argument(args, kwargs, 6, "groups") or 1
        kernel = tuple(weight.shape[2:])
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pads = tuple((total // 2, total - total // 2) for total in totals)
        elif padding == "valid":
            pads = ((0, 0),) * dims
        else:
            pads = tuple((p, p) for p in as_tuple(padding, dims, 0))
        use = ConvUse(source, weight, stride, pads, dilation, int(groups))
        return with_bias(use, argument(args, kwargs, 2, "bias"), dims)

    return conv


def as_tuple(value: Any, dims: int, default: int) -> tuple[int, ...]:
    """Return an argument that may be None, one number, or one number for each dimension."""
    if value is None:
        return (default,) * dims
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


CALLS: dict[Any, Rule] = {
    F.conv1d: _call(1),
    F.conv2d: _call(2),
    F.conv3d: _call(3),
}
