"""The convolutions in NTK parameterization."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ._scaled_conv import Device, ScaledConvNd
from ._scaling import (
    check_bias,
    check_dtype,
    check_sigma_b,
    check_sigma_w,
    check_size,
    sums_in_float16,
)

_PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


class _NTKConvNd(ScaledConvNd):
    """The part of the three convolutions that differs from `nn.ConvNd`.

    A subclass has `nn.ConvNd` as its second base.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        sigma_w: float = 1.0,
        sigma_b: float = 0.1,
    ) -> None:
        sigma_w, sigma_b = check_sigma_w(sigma_w), check_sigma_b(sigma_b)
        check_dtype(dtype)
        init: Any = super().__init__  # that of nn.ConvNd, the next class in the MRO
        init(
            check_size("in_channels", in_channels, 1),
            check_size("out_channels", out_channels),
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            check_bias(bias),
            padding_mode,
            device,
            dtype,
        )
        self.sigma_w, self.sigma_b = sigma_w, sigma_b

    def forward(self, input: Tensor) -> Tensor:
        """Map `[N, in_channels, ...]` (or without N) to `[N, out_channels, ...]`."""
        if sums_in_float16(self.weight):
            weight, bias = self.weight * self.weight_scale, self._scaled_bias()
            return self._conv_forward(input, weight, bias)
        return self._scaled(self._conv_forward(input, self.weight, None))


class NTKConv1d(_NTKConvNd, nn.Conv1d):
    r"""`nn.Conv1d` in NTK parameterization: `NTKConv2d` with one spatial axis.

    `y = sigma_w / sqrt(fan_in) · (W ⋆ x) + sigma_b · b` with `W, b ~ N(0, 1)` and
    `fan_in = in_channels / groups · kernel_size[0]`. Arguments, errors and source are those of
    `NTKConv2d`, the attributes those of `nn.Conv1d`.

    Shape:
        `[N, in_channels, L]` or `[in_channels, L]`.
    """


class NTKConv2d(_NTKConvNd, nn.Conv2d):
    r"""`nn.Conv2d` in NTK parameterization.

    `y = sigma_w / sqrt(fan_in) · (W ⋆ x) + sigma_b · b` with `W, b ~ N(0, 1)` and
    `fan_in = in_channels / groups · kernel_size[0] · kernel_size[1]`. Positions that the padding
    adds count in `fan_in`, as in the infinite-width limit. Source: Arora et al. 2019, "On Exact
    Computation with an Infinitely Wide Neural Net", section 4.

    The attributes and the shapes of weights are those of `nn.Conv2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel, one number or two.
        stride: Step between positions.
        padding: Positions added on either side, or `"same"` or `"valid"`.
        dilation: Spacing of the kernel's points.
        groups: Number of blocks of channels that do not mix.
        bias: Whether the layer adds `sigma_b · b`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters.
        sigma_w: Standard deviation of the scaled weights times `sqrt(fan_in)`; above 0.
        sigma_b: Standard deviation of the scaled bias; at least 0.

    Shape:
        `[N, in_channels, H, W]` or `[in_channels, H, W]`.

    Raises:
        TypeError: An argument has the wrong type, or `dtype` is complex or integer.
        ValueError: `sigma_w` is not a finite number above 0, `sigma_b` not one of at least 0,
            `in_channels` is 0, or `nn.Conv2d` refuses its arguments.

    Example:
        >>> layer = NTKConv2d(6, 4, 3, padding=1, groups=2, sigma_w=2**0.5, sigma_b=0.0)
        >>> layer.fan_in
        27
        >>> layer
        NTKConv2d(6, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2, sigma_w=1.41421, sigma_b=0)
    """  # noqa: E501


class NTKConv3d(_NTKConvNd, nn.Conv3d):
    r"""`nn.Conv3d` in NTK parameterization: `NTKConv2d` with three spatial axes.

    `y = sigma_w / sqrt(fan_in) · (W ⋆ x) + sigma_b · b` with `W, b ~ N(0, 1)` and
    `fan_in = in_channels / groups · prod(kernel_size)`. Arguments, errors and source are those of
    `NTKConv2d`, the attributes those of `nn.Conv3d`.

    Shape:
        `[N, in_channels, D, H, W]` or `[in_channels, D, H, W]`.
    """
