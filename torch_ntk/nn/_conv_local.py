"""The locally connected layer, a convolution without weight sharing, in NTK parameterization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import type_error, value_error
from ._scaled_conv import Device
from ._scaling import (
    NormalParameters,
    check_bias,
    check_dtype,
    check_sigma_b,
    check_sigma_w,
    check_size,
    scale_and_shift,
    sums_in_float16,
    weight_scale,
)


class NTKConvLocal2d(NormalParameters):
    r"""A convolution with separate weights for each position, in NTK parameterization.

    At every output position p, where `x_p` is the patch of the input under the kernel,

        y_p = sigma_w / sqrt(fan_in) · W_p x_p + sigma_b · b_p,    W, b ~ N(0, 1)

    with `fan_in = in_channels · prod(kernel_size)`: `nn.Conv2d` without the sharing of weights. In
    the infinite-width limit outputs at different positions are independent, so that averaging over
    positions does not have the effect that it has after a convolution. Source: Novak et al. 2019,
    "Bayesian Deep Convolutional Networks with Many Channels are Gaussian Processes", section 5.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel, one number or two.
        input_size: The size of the input `(H, W)`, one number or two; the number of weights depends
            on it.
        stride: Step between positions.
        padding: Zeros added on either side.
        bias: Whether the layer adds `sigma_b · b`, which has an entry for each channel and
            position.
        sigma_w: Standard deviation of the scaled weights times `sqrt(fan_in)`; above 0.
        sigma_b: Standard deviation of the scaled bias; at least 0.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters.

    Attributes:
        weight: `[P, Q, out_channels, in_channels, *kernel_size]` for an output of P × Q positions.
        bias: `[out_channels, P, Q]`, or None.
        output_size: `(P, Q)`.

    Shape:
        `[N, in_channels, H, W]` or `[in_channels, H, W]` to `[N, out_channels, P, Q]` likewise.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, the kernel is larger than the padded input,
            or an input does not have the size `input_size`.

    Example:
        >>> layer = NTKConvLocal2d(3, 8, 3, input_size=(6, 5), stride=2, padding=1)
        >>> layer(torch.ones(2, 3, 6, 5)).shape
        torch.Size([2, 8, 3, 3])
        >>> layer.weight.shape
        torch.Size([3, 3, 8, 3, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        input_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        sigma_w: float = 1.0,
        sigma_b: float = 0.1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sigma_w, self.sigma_b = check_sigma_w(sigma_w), check_sigma_b(sigma_b)
        check_dtype(dtype)
        self.in_channels = check_size("in_channels", in_channels, 1)
        self.out_channels = check_size("out_channels", out_channels)
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.input_size = _pair("input_size", input_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.padding = _pair("padding", padding, 0)
        check_bias(bias)
        room = [self.input_size[i] + 2 * self.padding[i] - self.kernel_size[i] for i in (0, 1)]
        if min(room) < 0:
            raise value_error(
                "kernel_size",
                f"at most the padded input, {self.input_size} with padding {self.padding}",
                str(self.kernel_size),
                "Pad more, or use a smaller kernel.",
            )
        self.output_size = (room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1)
        made = {"device": device, "dtype": dtype}
        channels = (self.out_channels, self.in_channels)
        self.weight = nn.Parameter(
            torch.empty(*self.output_size, *channels, *self.kernel_size, **made)  # type: ignore[arg-type]
        )
        self.bias: nn.Parameter | None
        if bias:
            shape = (self.out_channels, *self.output_size)
            self.bias = nn.Parameter(torch.empty(shape, **made))  # type: ignore[arg-type]
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        """The number of inputs over which each output sums: `in_channels · prod(kernel_size)`."""
        return self.in_channels * self.kernel_size[0] * self.kernel_size[1]

    @property
    def weight_scale(self) -> float:
        """The factor `sigma_w / sqrt(fan_in)` before the sum."""
        return weight_scale(self.sigma_w, self.fan_in)

    def forward(self, input: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` (or without N) to `[N, out_channels, P, Q]`."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check(input)
        rows, columns = self.padding
        padded = F.pad(input, (columns, columns, rows, rows))
        patches = padded.unfold(-2, self.kernel_size[0], self.stride[0])
        patches = patches.unfold(-2, self.kernel_size[1], self.stride[1])  # [..., C, P, Q, k, k]
        if sums_in_float16(self.weight):
            output = self._sums(patches, self.weight * self.weight_scale)
            return scale_and_shift(output, 1.0, self.bias, self.sigma_b)
        output = self._sums(patches, self.weight)
        return scale_and_shift(output, self.weight_scale, self.bias, self.sigma_b)

    def _sums(self, patches: Tensor, weight: Tensor) -> Tensor:
        # The weight has the axes of positions first, in the layout of a batched product over them.
        return torch.einsum("...cpqij,pqocij->...opq", patches, weight)

    def _check(self, input: Tensor) -> None:
        # In a symbolic trace the input is a proxy, whose shape is not known.
        if isinstance(input, Tensor) and input.shape[-2:] != self.input_size:
            raise value_error(
                "input",
                f"of {self.input_size[0]}×{self.input_size[1]} positions, the layer's input_size",
                input,
                "Each position has its own weights: make a layer for this size.",
            )

    def extra_repr(self) -> str:
        """The arguments and the two scales, for `repr`."""
        line = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"input_size={self.input_size}, stride={self.stride}"
        )
        line += f", padding={self.padding}" if any(self.padding) else ""
        line += "" if self.bias is not None else ", bias=False"
        return f"{line}, sigma_w={self.sigma_w:g}, sigma_b={self.sigma_b:g}"


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """A pair of integers, or one integer for both axes."""
    if not isinstance(value, (tuple, list)):
        size = check_size(name, value, least)
        return size, size
    if len(value) != 2:
        raise type_error(name, "an integer or a pair of integers", str(value))
    return check_size(name, value[0], least), check_size(name, value[1], least)
