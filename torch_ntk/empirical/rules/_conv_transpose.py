"""Transposed convolutions of one to three dimensions.

In contrast to a convolution, positions t are those of the input, and patches are taken from the
output's cotangent: `y[co, s·t - p + d·k] += Σ_ci W[ci, co, k] x[ci, t]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bias import with_bias
from ._conv import Window, as_tuple, patches
from ._rule import Rule, Use, argument


class ConvTransposeUse(Use):
    """A transposed convolution. Features are the inputs, and units the pairs (co, k)."""

    def __init__(
        self,
        source: Tensor,
        weight: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        self.source, self.weight = source, weight
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = groups
        self.inputs = weight.shape[0] // groups
        self.units = prod(weight.shape[1:])

    def positions(self, result: torch.Size) -> int:
        """Return the number of pixels of the input."""
        return self.source.numel() // max(1, self.groups * self.inputs)

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, G, T, a]`."""
        dims = self.weight.ndim - 2
        n = source.shape[0]
        x = source.reshape(n, -1, self.groups, self.inputs, prod(source.shape[-dims:]))
        return x.permute(0, 2, 1, 4, 3).reshape(n, self.groups, -1, self.inputs)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, G, T, b]`: patches of cotangents `[N, O, (images,) C, *out]`."""
        dims = self.weight.ndim - 2
        n, o = b.shape[:2]
        flat = b.reshape(n * o, -1, *b.shape[-dims - 1 :])
        pads = tuple((p, p) for p in self.padding)
        window = Window(tuple(self.weight.shape[2:]), self.stride, pads, self.dilation)
        found = patches(flat, window, self.groups, tuple(self.source.shape[-dims:]))
        return found.reshape(n, o, self.groups, -1, self.units)

    def unpack(self, jacobian: Tensor) -> Tensor:
        """Reorder `[N, O, G, b, a]` to the weight's layout, in which a precedes b."""
        return jacobian.transpose(3, 4).flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """Undo `unpack`, for a gradient `[p]`."""
        return gradient.reshape(self.groups, self.inputs, self.units).transpose(1, 2)


def _call(dims: int) -> Rule:
    def conv_transpose(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
        source, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        stride = as_tuple(argument(args, kwargs, 3, "stride"), dims, 1)
        padding = as_tuple(argument(args, kwargs, 4, "padding"), dims, 0)
        groups = argument(args, kwargs, 6, "groups") or 1
        dilation = as_tuple(argument(args, kwargs, 7, "dilation"), dims, 1)
        use = ConvTransposeUse(source, weight, stride, padding, dilation, int(groups))
        # The bias has other cotangents than the weight, whose cotangents are patches.
        return with_bias(use, argument(args, kwargs, 2, "bias"), dims, joins=False)

    return conv_transpose


CALLS: dict[Any, Rule] = {
    F.conv_transpose1d: _call(1),
    F.conv_transpose2d: _call(2),
    F.conv_transpose3d: _call(3),
}
