"""The common base class of convolutions and transposed convolutions in NTK parameterization."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from ._scaling import NormalParameters, scale_and_shift, weight_scale

Device: TypeAlias = torch.device | str | int | None
"""The device of a layer's parameters."""


class ScaledConvNd(NormalParameters, _ConvNd):
    """Applies the scales.

    A subclass sets `sigma_w` and `sigma_b`, and has a layer of `torch.nn` as its second base.
    """

    if TYPE_CHECKING:  # torch.jit.script fails on annotations that are strings
        sigma_w: float
        sigma_b: float

    @property
    def fan_in(self) -> int:
        """The number of inputs of each output: `in_channels / groups · prod(kernel_size)`."""
        fan_in = self.in_channels // self.groups
        for size in self.kernel_size:  # TorchScript does not support math.prod
            fan_in *= size
        return fan_in

    @property
    def weight_scale(self) -> float:
        """The factor `sigma_w / sqrt(fan_in)` before the convolution."""
        return weight_scale(self.sigma_w, self.fan_in)

    def _scaled_bias(self) -> Tensor | None:
        bias = self.bias
        return None if bias is None else bias * self.sigma_b

    def _scaled(self, output: Tensor) -> Tensor:
        """Multiply a convolution with unscaled weights by the scale, and add the scaled bias."""
        bias = self.bias
        # The bias gets an axis of channels and axes of positions: right with and without a batch.
        column = None if bias is None else bias.reshape([-1] + [1] * len(self.kernel_size))
        return scale_and_shift(output, self.weight_scale, column, self.sigma_b)

    def extra_repr(self) -> str:
        """The text of the layer of `torch.nn`, and the two scales."""
        line: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{line}, sigma_w={self.sigma_w:g}, sigma_b={self.sigma_b:g}"
