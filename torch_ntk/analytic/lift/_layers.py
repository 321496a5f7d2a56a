"""Layers of weights, in NTK parameterization and in standard parameterization."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...nn import NTKConvLocal2d
from ...nn._inventory import StandardConvTranspose, fan_in_of
from ..operations import ONE, Affine, Taps, Unshared, folded, taps, transposed_taps
from ._builder import Builder
from ._standard import ORDINARY, variances
from ._values import Data, Layout, Value, is_trained, sample_shape, two_axes


def dense(b: Builder, module: nn.Linear, x: Any) -> Value:
    """Read `NTKLinear` or `nn.Linear`, which acts on the last axis at each position."""
    shape = sample_shape(x)
    what = f"{type(module).__name__}({module.in_features}, {module.out_features})"
    last = len(shape) - 1
    if not isinstance(x, Data) and x.axis != last:
        raise b.refusal(
            f"{what} on features with positions, {shape} per sample",
            "A dense layer acts on the last axis, which would mix positions as if they were "
            "channels.",
            "Flatten or pool first, permute the channels to the last axis, or use an NTKConv "
            "layer with kernel size 1.",
        )
    check_channels(b, what, module.in_features, shape[last])
    spatial = shape[:last]
    rows, columns = (taps(n, 1) for n in two_axes(spatial))
    operation = Affine(rows, columns, *coefficients(b, module, module.in_features))
    layout = Layout(module.out_features, spatial, last)
    return b.affine(x, operation, b.layer(module), layout, what)


def convolution(b: Builder, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Any) -> Value:
    """Read a convolution, `NTKConvNd` or `nn.ConvNd`, with all its arguments."""
    what, shape = _convolved(b, module, x)
    axes = len(module.kernel_size)
    found = []
    for i in range(axes):
        before, after = _padding(module, i)
        _check_padding(b, what, module.padding_mode, max(before, after), shape[1 + i])
        found.append(
            taps(
                shape[1 + i],
                module.kernel_size[i],
                module.stride[i],
                module.dilation[i],
                (before, after),
                module.padding_mode,
            )
        )
        if found[-1].size_out < 1:
            raise b.refusal(
                f"{what} on {shape[1:]} positions",
                "The kernel is larger than the padded image.",
                "Use a smaller kernel, or more padding.",
            )
    return _with_taps(b, module, x, found, what)


def transposed_convolution(
    b: Builder, module: StandardConvTranspose, x: Any, output_size: Any = None
) -> Value:
    """Read a transposed convolution, `NTKConvTransposeNd` or `nn.ConvTransposeNd`.

    Each output is a sum of inputs times independent weights. So it is a convolution whose taps
    read a zero wherever the stride leaves a gap.
    """
    what, shape = _convolved(b, module, x)
    added = _added(b, module, shape, what, output_size)
    found = [
        transposed_taps(size, *options)
        for size, *options in zip(
            shape[1:],
            module.kernel_size,
            module.stride,
            module.dilation,
            module.padding,
            added,
            strict=True,
        )
    ]
    if min(t.size_out for t in found) < 1:
        raise b.refusal(
            f"{what} on {shape[1:]} positions",
            "Its padding leaves no output.",
            "Use less padding, or a larger input.",
        )
    return _with_taps(b, module, x, found, what)


def local_convolution(b: Builder, module: NTKConvLocal2d, x: Any) -> Value:
    """Read `NTKConvLocal2d`, which has different weights at each position."""
    what, shape = _convolved(b, module, x)
    if shape[1:] != module.input_size:
        raise b.refusal(
            f"{what} on {shape[1:]} positions",
            f"It has weights for {module.input_size}.",
            "Build it with the input_size of its input.",
        )
    rows, columns = (
        taps(size, kernel, stride, 1, (padding, padding))
        for size, kernel, stride, padding in zip(
            shape[1:], module.kernel_size, module.stride, module.padding, strict=True
        )
    )
    shared = Affine(rows, columns, *coefficients(b, module, module.fan_in))
    layout = Layout(module.out_channels, module.output_size)
    return b.affine(x, Unshared(shared), b.layer(module), layout, what)


def _added(b: Builder, module: Any, shape: tuple[int, ...], what: str, size: Any) -> list[int]:
    """Return the output padding of each axis with which the output has `size`."""
    if isinstance(size, Data):
        size = size.first
    if size is not None:
        size = [n.first if isinstance(n, Data) else n for n in size]
    image = torch.empty(1, *shape, device="meta")
    options = module.stride, module.padding, module.kernel_size, len(module.stride), module.dilation
    try:
        return list(module._output_padding(image, size, *options))
    except ValueError as error:
        raise b.refusal(
            f"{what} with output_size={size}",
            f"{error}.",
            "Choose a size in this range, or omit it.",
        ) from error


def _convolved(b: Builder, module: Any, x: Any) -> tuple[str, tuple[int, ...]]:
    """Return a convolution's name for messages and the shape of a sample, after checking it."""
    shape, axes = sample_shape(x), len(module.kernel_size)
    what = f"{type(module).__name__}({module.in_channels}, {module.out_channels}, …)"
    if len(shape) != 1 + axes:
        raise b.refusal(
            f"{what} on samples of shape {shape}",
            f"It needs channels and {axes} {'axis' if axes == 1 else 'axes'} of positions.",
            "Reshape the samples, or use the layer for their number of axes.",
        )
    b.channels_first(x, what)
    check_channels(b, what, module.in_channels, shape[0])
    _check_groups(b, what, module, x)
    return what, shape


def _with_taps(b: Builder, module: Any, x: Any, found: list[Taps], what: str) -> Value:
    """Add a layer with taps along each of its axes, the last of which are joined to one."""
    columns = functools.reduce(folded, found[1:]) if len(found) > 1 else ONE
    operation = Affine(found[0], columns, *coefficients(b, module, fan_in_of(module)))
    layout = Layout(module.out_channels, tuple(t.size_out for t in found))
    made = b.affine(x, operation, b.layer(module), layout, what)
    return _depthwise_output(made, b.value(x)) if _is_depthwise(module) else made


def _is_depthwise(module: Any) -> bool:
    return 1 < int(module.groups) == int(module.in_channels)


def _depthwise_output(made: Value, x: Value) -> Value:
    """Return the output of a depthwise convolution, which sums over few inputs of one channel.

    On average over channels its covariances are those of any layer, and only this average enters
    the next layer that mixes channels. But the output is not Gaussian, and each of its channels
    depends on one channel of the input.
    """
    kept = made.channels == x.channels
    roots = frozenset((layer, at if kept else None) for layer, at in x.roots)
    return replace(made, gaussian=False, gained=x.gained, roots=made.roots | roots)


def coefficients(b: Builder, module: Any, fan_in: int) -> tuple[float, float, float, float]:
    """Return the numbers a, b, c and d of a layer of weights; see `Affine`.

    In NTK parameterization, `sigma_w/√n · W x + sigma_b · b` with variances of 1, they are
    (sigma_w², sigma_b², sigma_w², sigma_b²). In standard parameterization, `W x + b`, the scales
    are in the variances: (n Var W, Var b, n, 1), so that Θ grows with the fan-in n (Sohl-Dickstein
    et al. 2020, "On the infinite width limit of neural networks with a standard parameterization").

    Args:
        b: The builder that collects steps.
        module: A layer with a `weight` and perhaps a `bias`.
        fan_in: The number n of products of which each output is the sum.
    """
    weight, bias = module.weight, module.bias
    trained = float(weight.requires_grad), float(is_trained(bias))
    if type(module) not in ORDINARY:
        first, second = module.sigma_w**2, 0.0 if bias is None else module.sigma_b**2
        return first, second, first * trained[0], second * trained[1]
    scheme = b.standard.of(module)
    if scheme is None:
        raise _refusal_of_ordinary(b, module)
    # torch takes the fan-in from the second axis of the weight, for transposed convolutions, too.
    drawn_for = weight[0].numel() if scheme == "torch" else fan_in
    first, second = variances(scheme, drawn_for)
    return fan_in * first, 0.0 if bias is None else second, fan_in * trained[0], trained[1]


def _refusal_of_ordinary(b: Builder, module: nn.Module) -> ValueError:
    what = f"nn.{type(module).__name__}"
    if b.standard.given:
        return b.refusal(
            what,
            "`standard` says nothing of it.",
            "Add its name to the mapping, or '' for all layers.",
        )
    return b.refusal(
        what,
        "In the standard parameterization the tangent kernel diverges as the width grows.",
        "Use torch_ntk.ntk_parameterize(model), or NTKLinear and NTKConv layers; or, for the "
        "kernel at the network's own widths, standard='torch' if its layers have their default "
        "initialization, and otherwise another standard=.",
    )


def check_channels(b: Builder, what: str, expected: int, came: int) -> None:
    """Raise an error if a layer for `expected` features gets another number of them."""
    if expected != came:
        raise b.refusal(
            f"{what} on {came} features",
            f"It takes {expected}.",
            f"Build it for {came} features.",
        )


def _check_groups(b: Builder, what: str, module: nn.Module, x: Any) -> None:
    if int(getattr(module, "groups", 1)) == 1:
        return
    if isinstance(x, Data) or not x.alike:
        where = "the inputs" if isinstance(x, Data) else "channels of several kinds"
        raise b.refusal(
            f"{what} with groups on {where}",
            "Each group has other channels as inputs, so that the kernels of the groups differ.",
            "Use groups=1 here.",
        )


def _check_padding(b: Builder, what: str, mode: str, padding: int, size: int) -> None:
    """Raise an error for padding that the layer itself would refuse in its forward."""
    if (mode == "circular" and padding > size) or (mode == "reflect" and padding >= size):
        raise b.refusal(
            f"{what} with {mode} padding of {padding} on an axis of {size} positions",
            "The image has too few positions for this padding.",
            "Use less padding, or larger images.",
        )


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, axis: int) -> tuple[int, int]:
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[axis] * (module.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    amount = int(module.padding[axis])
    return amount, amount
