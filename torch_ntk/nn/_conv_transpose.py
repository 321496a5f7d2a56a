"""The transposed convolutions in NTK parameterization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ._scaled_conv import Device, ScaledConvNd
from ._scaling import (
    check_bias,
    check_dtype,
    check_sigma_b,
    check_sigma_w,
    check_size,
    sums_in_float16,
)


class _NTKConvTransposeNd(ScaledConvNd, _ConvTransposeNd):
    """The part of the three transposed convolutions that differs from `nn.ConvTransposeNd`.

    A subclass has `nn.ConvTransposeNd` as its second base.
    """

    if TYPE_CHECKING:  # torch declares wider types, for all kinds of convolution
        stride: Any
        padding: Any
        kernel_size: Any
        dilation: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        sigma_w: float = 1.0,
        sigma_b: float = 0.1,
    ) -> None:
        sigma_w, sigma_b = check_sigma_w(sigma_w), check_sigma_b(sigma_b)
        check_dtype(dtype)
        init: Any = super().__init__  # that of nn.ConvTransposeNd, the next class in the MRO
        init(
            check_size("in_channels", in_channels, 1),
            check_size("out_channels", out_channels),
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            check_bias(bias),
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self.sigma_w, self.sigma_b = sigma_w, sigma_b

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map `[N, in_channels, ...]` (or without N) to `[N, out_channels, ...]`."""
        stride, padding, kernel_size = self.stride, self.padding, self.kernel_size
        axes = len(self.kernel_size)
        # The `output_padding` of each axis with which the output has this size.
        added = self._output_padding(
            input, output_size, stride, padding, kernel_size, axes, self.dilation
        )
        if sums_in_float16(self.weight):
            weight = self.weight * self.weight_scale
            return self._transposed(input, weight, self._scaled_bias(), added)
        return self._scaled(self._transposed(input, self.weight, None, added))

    def _transposed(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, added: list[int]
    ) -> Tensor:
        """Call the function for the number of axes; TorchScript compiles none that is passed."""
        raise NotImplementedError


class NTKConvTranspose1d(_NTKConvTransposeNd, nn.ConvTranspose1d):
    r"""`nn.ConvTranspose1d` in NTK parameterization: `NTKConvTranspose2d` with one spatial axis.

    `y = sigma_w / sqrt(fan_in) · (W ⋆ᵀ x) + sigma_b · b` with `W, b ~ N(0, 1)` and
    `fan_in = in_channels / groups · kernel_size[0]`. Arguments and errors are those of
    `NTKConvTranspose2d`, the attributes those of `nn.ConvTranspose1d`.

    Shape:
        `[N, in_channels, L]` or `[in_channels, L]`, as in `nn.ConvTranspose1d`.
    """

    def _transposed(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, added: list[int]
    ) -> Tensor:
        return F.conv_transpose1d(
            input, weight, bias, self.stride, self.padding, added, self.groups, self.dilation
        )


class NTKConvTranspose2d(_NTKConvTransposeNd, nn.ConvTranspose2d):
    r"""`nn.ConvTranspose2d` in NTK parameterization.

    `y = sigma_w / sqrt(fan_in) · (W ⋆ᵀ x) + sigma_b · b` with `W, b ~ N(0, 1)` and
    `fan_in = in_channels / groups · prod(kernel_size)`, as for a convolution. With a stride above
    1 most outputs sum over fewer inputs, because zeros are inserted between the inputs; these zeros
    count in `fan_in`, like the positions that a convolution's padding adds. The weight is that of
    `nn.ConvTranspose2d`, `[in_channels, out_channels / groups, *kernel_size]`.

    The other arguments, attributes and shapes are those of `nn.ConvTranspose2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel, one number or two.
        stride: Step between the outputs of neighbouring inputs.
        padding: Positions left out on either side of the output.
        output_padding: Positions added on one side of the output.
        groups: Number of blocks of channels that do not mix.
        bias: Whether the layer adds `sigma_b · b`.
        dilation: Spacing of the kernel's points.
        padding_mode: `"zeros"`.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters.
        sigma_w: Standard deviation of the scaled weights times `sqrt(fan_in)`; above 0.
        sigma_b: Standard deviation of the scaled bias; at least 0.

    Shape:
        `[N, in_channels, H, W]` or `[in_channels, H, W]`; `output_size` in the call chooses
        among the sizes that the stride leaves open, as in `nn.ConvTranspose2d`.

    Raises:
        TypeError: An argument has the wrong type, or `dtype` is complex or integer.
        ValueError: `sigma_w` is not a finite number above 0, `sigma_b` not one of at least 0,
            `in_channels` is 0, or `nn.ConvTranspose2d` refuses its arguments.

    Example:
        >>> layer = NTKConvTranspose2d(6, 4, 3, stride=2, groups=2, sigma_w=1.5, sigma_b=0.0)
        >>> layer.fan_in
        27
        >>> layer(torch.ones(1, 6, 4, 4), output_size=[10, 10]).shape
        torch.Size([1, 4, 10, 10])
    """

    def _transposed(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, added: list[int]
    ) -> Tensor:
        return F.conv_transpose2d(
            input, weight, bias, self.stride, self.padding, added, self.groups, self.dilation
        )


class NTKConvTranspose3d(_NTKConvTransposeNd, nn.ConvTranspose3d):
    r"""`nn.ConvTranspose3d` in NTK parameterization: `NTKConvTranspose2d` with three spatial axes.

    `y = sigma_w / sqrt(fan_in) · (W ⋆ᵀ x) + sigma_b · b` with `W, b ~ N(0, 1)` and
    `fan_in = in_channels / groups · prod(kernel_size)`. Arguments and errors are those of
    `NTKConvTranspose2d`, the attributes those of `nn.ConvTranspose3d`.

    Shape:
        `[N, in_channels, D, H, W]` or `[in_channels, D, H, W]`, as in `nn.ConvTranspose3d`.
    """

    def _transposed(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, added: list[int]
    ) -> Tensor:
        return F.conv_transpose3d(
            input, weight, bias, self.stride, self.padding, added, self.groups, self.dilation
        )
