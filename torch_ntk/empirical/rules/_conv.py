"""Convolutions of one to three dimensions, with groups, stride, dilation and padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .._inner_products import inner_products, takes_onednn
from ._bias import with_bias
from ._rule import Use, argument

# Operations of a product that take as long as adding one summand to an entry of a Gram matrix.
_OF_SUM = 50


class ConvUse(Use):
    """A convolution; its features are the patches under the filter, its positions the outputs.

    Attributes:
        channels_last: Whether a pass is made with the channels last in memory, as in two dimensions
            on a CPU (see `_parameter_uses.perturbed`). Entries of a patch then run over them last.
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
        """A `[N, G, T, a]`: patches, gathered by strided views and one copy."""
        return self._patches(self._images(source))

    def _images(self, source: Tensor) -> Tensor:
        dims = self.weight.ndim - 2
        return source.reshape(source.shape[0], -1, *source.shape[-dims - 1 :])

    def _patches(self, images: Tensor) -> Tensor:
        kernel = tuple(self.weight.shape[2:])
        where = (kernel, self.stride, self.padding, self.dilation, self.groups)
        return patches(images, *where, channels_last=self.channels_last)

    def held(self, source: Tensor) -> Tensor:
        """Images, which are smaller than their patches unless the stride is large."""
        if self.groups > 1:
            return self.features(source)
        # A view would keep all of what it is cut from.
        is_part = source.untyped_storage().nbytes() > source.numel() * source.element_size()
        return self._images(source.clone() if is_part else source)

    def held_size(self, source: torch.Size, positions: int) -> int:
        """Numbers of one source, or of its patches."""
        return source.numel() if self.groups == 1 else super().held_size(source, positions)

    def for_gram(self) -> Use:
        """Parts of patches, where so much is saved that their sums are worth it."""
        taps = self.weight.shape[2]
        saved = self.inputs - self.inputs // taps
        if self.stride[0] > 1 or self.groups > 1 or saved < _OF_SUM * taps:
            return self
        return _RowsUse(self)

    @property
    def is_direct(self) -> bool:
        """In two dimensions on a CPU."""
        kind = self.weight.dtype
        return (
            self.channels_last
            and self.groups == 1
            and takes_onednn(torch.device("cpu"), kind)
            and all(before == after for before, after in self.padding)
        )

    def formed(self, held: Tensor, b: Tensor) -> Tensor:
        """By oneDNN's gradient of weights: samples are groups, and outputs are more channels.

        It needs no patches, which are nine times as large as images for 3x3 filters and written
        and read again.
        """
        n, m, channels, *size = held.shape
        o, units = b.shape[1:3]
        x = held.transpose(0, 1).reshape(m, n * channels, *size)
        places = b.reshape(*b.shape[:3], m, *self.places(size))
        g = places.permute(3, 0, 1, 2, 4, 5).flatten(1, 3)
        shape = (n * o * units, *self.weight.shape[1:])
        padding = [before for before, _ in self.padding]
        found: Tensor = conv2d_weight(x, shape, g, self.stride, padding, self.dilation, n)  # type: ignore[no-untyped-call]
        return found.reshape(n, o, -1)

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many places the filter has in images of this size, in each dimension."""
        kernel = self.weight.shape[2:]
        each = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((s + sum(p) - d * (k - 1) - 1) // step + 1 for s, k, step, p, d in each)

    @property
    def steps(self) -> int:
        """Channels, each with all taps."""
        return self.weight.shape[1] if self.groups == 1 else self.inputs

    def narrowed(self, kept: Tensor, start: int, stop: int) -> Tensor:
        """Patches of some channels."""
        if self.groups > 1:
            return super().narrowed(kept, start, stop)
        return self._patches(kept[:, :, start:stop])

    def narrowed_entries(self, packed: Tensor, start: int, stop: int) -> Tensor:
        """Those of some channels, which run last or first in a patch."""
        if not self.channels_last:
            return super().narrowed_entries(packed, start, stop)
        split = packed.reshape(len(packed), -1, self.weight.shape[1])
        return split[..., start:stop].flatten(1)

    def unpack(self, jacobian: Tensor) -> Tensor:
        """Entries of the weight run over the channels first."""
        if not self.channels_last:
            return jacobian.flatten(2)
        channels = self.weight.shape[1]
        split = jacobian.reshape(*jacobian.shape[:4], -1, channels)
        return split.transpose(4, 5).flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """Undoes it."""
        split = gradient.reshape(self.groups, self.units, self.weight.shape[1], -1)
        return (split.transpose(2, 3) if self.channels_last else split).flatten(2)

    def applied(self, source: Tensor, vectors: Tensor) -> Tensor:
        """Features times vectors: a convolution with these as its filters."""
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
        """B `[N, O, G, T, b]` of `[N, O, (images,) C, *out]`."""
        dims = self.weight.ndim - 2
        n, o = b.shape[:2]
        b = b.reshape(n, o, -1, self.groups, self.units, prod(b.shape[-dims:]))
        return b.permute(0, 1, 3, 2, 5, 4).reshape(n, o, self.groups, -1, self.units)


class _RowsUse(ConvUse):
    """A convolution whose features are the rows of patches, each at every place in an image.

    Patches of neighbouring places share their rows. With stride 1 in the first dimension the inner
    product of the patches at i and i' is the sum of ⟨row[i + a], row[i' + a]⟩ over the taps a of
    that dimension, so that of 3x3 filters a third of the products are left.
    """

    def __init__(self, use: ConvUse) -> None:
        where = (use.stride, use.padding, use.dilation, use.groups)
        super().__init__(use.source, use.weight, *where)
        self.name, self.channels_last = use.name, use.channels_last

    def _patches(self, images: Tensor) -> Tensor:
        rest = ((1, *a[1:]) for a in (self.weight.shape[2:], self.stride, self.dilation))
        kernel, stride, dilation = rest
        padding = ((0, 0), *self.padding[1:])
        return patches(images, kernel, stride, padding, dilation, 1)

    @property
    def gram_width(self) -> int:
        """Of a row, and what the sum takes."""
        taps = self.weight.shape[2]
        return self.inputs // taps + _OF_SUM * taps

    def gram(self, a1: Tensor, a2: Tensor) -> Tensor:
        """Inner products of patches, from those of their rows."""
        dims = self.weight.ndim - 2
        size = self.source.shape[-dims:]
        out, *rest = self.places(size)
        each = prod(rest)
        rows = inner_products(a1[0], a2[0])
        rows = rows.view(-1, size[0], each, rows.shape[1] // (size[0] * each), size[0], each)
        n1, n2 = rows.shape[0], rows.shape[3]
        found = rows.new_zeros(n1, out, each, n2, out, each)
        for tap in range(self.weight.shape[2]):
            off = tap * self.dilation[0] - self.padding[0][0]
            start, stop = max(0, -off), min(out, size[0] - off)
            if start < stop:
                of_taps = rows[:, start + off : stop + off, :, :, start + off : stop + off]
                found[:, start:stop, :, :, start:stop] += of_taps
        return found.view(1, n1 * out * each, n2 * out * each)


def patches(
    images: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    most: tuple[int, ...] | None = None,
    channels_last: bool = False,
) -> Tensor:
    """What lies under a filter at all of its places: `[N, G, M·places, C/G·taps]`.

    Args:
        images: `[N, M, C, *size]`.
        kernel: Size of the filter.
        stride: Between places.
        padding: Zeros before and after each dimension.
        dilation: Between taps.
        groups: Of channels.
        most: Places to take in each dimension; None takes all.
        channels_last: Whether entries of a patch run over taps before channels.
    """
    dims = len(kernel)
    n = images.shape[0]
    x = images.flatten(0, 1)
    flat = [p for before_after in reversed(padding) for p in before_after]
    x = F.pad(x, flat) if any(flat) else x
    for d in range(dims):
        span = (kernel[d] - 1) * dilation[d] + 1
        x = x.unfold(2 + d, span, stride[d])[..., :: dilation[d]]
        if most is not None:
            x = x.narrow(2 + d, 0, most[d])
    channels, out = x.shape[1], x.shape[2 : 2 + dims]
    x = x.reshape(n, -1, groups, channels // groups, *out, *kernel)
    # [N, M, G, C/G, *out, *kernel] to [N, G, M·out, C/G·kernel], or kernel·C/G
    axes = list(range(x.ndim))
    positions, taps = axes[4 : 4 + dims], axes[4 + dims :]
    x = x.permute(0, 2, 1, *positions, *((*taps, 3) if channels_last else (3, *taps)))
    return x.reshape(n, groups, -1, channels // groups * prod(kernel))


def _call(dims: int) -> Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Use]]:
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
    """An argument that may be left out, one number, or one for each dimension."""
    if value is None:
        return (default,) * dims
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


CALLS: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Use]]] = {
    F.conv1d: _call(1),
    F.conv2d: _call(2),
    F.conv3d: _call(3),
    torch.conv1d: _call(1),
    torch.conv2d: _call(2),
    torch.conv3d: _call(3),
}
