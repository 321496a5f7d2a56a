"""The tables of functions, methods and modules that act on positions.

Functions that only move entries are read by `rearranged`, and other linear maps by `mapped`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arrange import rearranged
from ._builder import Builder
from ._elementwise import combine
from ._linear_maps import folded_back, mapped, matrix_product, summed_product
from ._values import Data, Features, sample_shape

Rule = Callable[..., Any]


def plain(b: Builder, x: Any, samples: bool = False) -> Any:
    """Return arguments, or containers of them, without the `Data` around known values.

    Args:
        b: The builder that collects steps.
        x: The arguments.
        samples: Whether numbers of samples may be among them, which differ between x1 and x2.

    Raises:
        ValueError: A known value differs between x1 and x2.
    """
    if isinstance(x, Data):
        if not _is_one(b, x, samples):
            raise b.refusal(
                "an argument that differs between x1 and x2",
                "The operation would not be the same for all samples.",
                "Use a constant.",
            )
        return x.first
    if isinstance(x, slice):
        return slice(*(plain(b, a, samples) for a in (x.start, x.stop, x.step)))
    if isinstance(x, (tuple, list)):
        return type(x)(plain(b, a, samples) for a in x)
    return x


def _is_one(b: Builder, x: Data, samples: bool) -> bool:
    """Whether a known value is the same for x1 and x2, up to the numbers of samples."""
    first, second = x.first, x.second
    if first is second:
        return True
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if samples and isinstance(first, tuple) and first and second:
        return first[1:] == second[1:] and _is_one(b, Data(first[0], second[0]), samples)
    return bool(first == second) or (samples and (first, second) == b.samples)


def _mover(function: Callable[..., Tensor], name: str, *dims: int | str) -> Rule:
    """Return the rule of a function that moves entries.

    `rearranged` calls the function with two samples. What it does to the axis of samples could
    depend on their number, so the function must not name this axis.

    Args:
        function: The function.
        name: Its name, for messages.
        *dims: The arguments that name axes, by position (0 follows the tensor) or by keyword.
    """

    def rule(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Features:
        args, kwargs = plain(b, args), {k: plain(b, v) for k, v in kwargs.items()}
        for d in dims:
            if isinstance(d, str):
                found = kwargs.get(d)
            else:
                found = args[d] if d < len(args) else None
            for axis in found if isinstance(found, (tuple, list)) else [found]:
                _check_axis(b, x, axis, name)
        return rearranged(b, x, lambda t: function(t, *args, **kwargs), name)

    return rule


def _check_axis(b: Builder, x: Any, axis: Any, name: str) -> None:
    axes = len(x.shape) + 1
    if isinstance(axis, int) and axis in (0, -axes):
        raise b.refusal(
            f"{name} of axis 0", "It mixes the samples of a batch.", "Choose an axis of positions."
        )


def _method(name: str, *dims: int | str) -> Rule:
    return _mover(lambda t, *args, **kwargs: getattr(t, name)(*args, **kwargs), name, *dims)


def _index(b: Builder, x: Any, index: Any) -> Any:
    if isinstance(x, (tuple, list, dict)):
        return x[index]
    index = plain(b, index)
    first = index[0] if isinstance(index, tuple) and index else index
    if first is not Ellipsis and first != slice(None):
        raise b.refusal(
            "an index of the batch",
            "It selects some of the samples.",
            "Select the samples before the call.",
        )
    return rearranged(b, x, lambda t: t[index], "an index")


def _expand(b: Builder, x: Any, *sizes: Any) -> Features:
    wanted = plain(b, sizes, samples=True)
    wanted = wanted[0] if len(wanted) == 1 and isinstance(wanted[0], tuple) else wanted
    if len(wanted) != 1 + len(x.shape) or wanted[0] not in (-1, *b.samples):
        raise b.refusal(
            f"expand to {tuple(wanted)}",
            "Samples must stay on the first axis.",
            "Use -1 for axis 0.",
        )
    return rearranged(b, x, lambda t: t.expand(2, *wanted[1:]), "expand")


def _expand_as(b: Builder, x: Any, other: Any) -> Features:
    return _expand(b, x, -1, *sample_shape(other))


def _repeat(b: Builder, x: Any, *counts: Any) -> Features:
    wanted = plain(b, counts[0] if len(counts) == 1 and isinstance(counts[0], tuple) else counts)
    if len(wanted) != 1 + len(x.shape) or wanted[0] != 1:
        raise b.refusal(
            f"repeat by {tuple(wanted)}",
            "Samples must not be repeated.",
            "Repeat 1 times along axis 0.",
        )
    return rearranged(b, x, lambda t: t.repeat(*wanted), "repeat")


def _split(function: Callable[..., Any], name: str) -> Rule:
    """Return the rule of a function like `torch.chunk`, which returns several tensors."""

    def rule(b: Builder, x: Any, how: Any = None, dim: int = 0) -> tuple[Features, ...]:
        how, dim = plain(b, how), plain(b, dim)
        if name == "unbind":
            how, dim = None, (how if how is not None else dim)
        _check_axis(b, x, dim, name)
        arguments = (dim,) if how is None else (how, dim)
        if dim >= len(x.shape) + 1 or dim < -len(x.shape) - 1:
            raise b.refusal(
                f"{name} of axis {dim}", f"Samples have {len(x.shape)} axes.", "Choose one of them."
            )
        count = len(function(torch.empty(2, *x.shape, device="meta"), *arguments))
        return tuple(
            rearranged(b, x, functools.partial(_nth, function, arguments, i), name)
            for i in range(count)
        )

    return rule


def _nth(function: Callable[..., Any], arguments: tuple[Any, ...], i: int, t: Tensor) -> Tensor:
    found: Tensor = function(t, *arguments)[i]
    return found


def _pad(b: Builder, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Features:
    if mode == "constant" and value not in (None, 0):
        raise b.refusal(
            f"padding with {value}",
            "Features with a constant do not have zero mean.",
            "Pad with 0.",
        )
    amounts = list(plain(b, pad))
    return rearranged(b, x, lambda t: F.pad(t, amounts, mode), f"{mode} padding")


def _interpolate(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Features:
    b.channels_first(x, "F.interpolate")
    args, kwargs = plain(b, args), {k: plain(b, v) for k, v in kwargs.items()}
    return mapped(b, x, lambda t: F.interpolate(t, *args, **kwargs), "F.interpolate")


def _unfold(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Features:
    b.channels_first(x, "F.unfold")
    return rearranged(b, x, lambda t: F.unfold(t, *args, **kwargs), "F.unfold")


def _fold(b: Builder, x: Any, output_size: Any, kernel_size: Any, *args: Any, **kw: Any) -> Any:
    return folded_back(b, x, lambda t: F.fold(t, output_size, kernel_size, *args, **kw))


def _einsum(b: Builder, equation: str, *operands: Any) -> Features:
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    return summed_product(b, equation, operands)


def _linear(b: Builder, x: Any, weight: Any, bias: Any = None) -> Features:
    """Read `F.linear` with a known weight, over positions on the last axis."""
    if not isinstance(weight, Data) or isinstance(x, Data):
        raise b.refusal(
            "F.linear with a weight of features",
            "Products of two features have no limit.",
            "Use NTKLinear, or multiply by a known matrix.",
        )
    made = matrix_product(b, x, weight.map(lambda t: t.mT))
    return made if bias is None else combine(b, made, bias, operator.add, "add")


def _convolved(function: Callable[..., Tensor]) -> Rule:
    """Return the rule of a convolution of every channel with the same known kernel, as a blur."""
    name = f"F.{function.__name__}"

    def rule(
        b: Builder,
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Features:
        b.channels_first(x, name)
        kernels = weight.first if isinstance(weight, Data) else None
        channels = x.shape[0]
        if (
            kernels is None
            or not (weight.second is kernels or torch.equal(weight.second, kernels))
            or bias is not None
            or (plain(b, groups), *kernels.shape[:2]) != (channels, channels, 1)
            or not bool((kernels == kernels[:1]).all())
        ):
            raise b.refusal(
                name,
                "It is a map of positions only if it does the same to each channel.",
                "Use one known kernel for all channels, [C, 1, …] with groups=C, and no bias; "
                "or use an NTKConv layer.",
            )
        kernel, options = kernels[:1].to(b.dtype), plain(b, (stride, padding, dilation))
        return mapped(b, x, lambda t: function(t, kernel, None, *options), name)

    return rule


def _moving_module(name: str) -> Rule:
    """Return the rule of a module that only moves entries."""

    def rule(b: Builder, module: Any, x: Any) -> Features:
        b.channels_first(x, name)
        return rearranged(b, x, module, name)

    return rule


def _constant_pad(b: Builder, module: Any, x: Any) -> Features:
    return _pad(b, x, module.padding, value=module.value)


def _upsample(b: Builder, module: nn.Module, x: Any) -> Features:
    b.channels_first(x, type(module).__name__)
    return mapped(b, x, module, type(module).__name__)


_MATMUL = (operator.matmul, torch.matmul, torch.bmm, torch.mm)

FUNCTIONS: dict[Any, Rule] = {
    operator.getitem: _index,
    torch.permute: _mover(torch.permute, "permute"),
    torch.transpose: _mover(torch.transpose, "transpose"),
    torch.swapaxes: _mover(torch.swapaxes, "swapaxes"),
    torch.movedim: _mover(torch.movedim, "movedim"),
    torch.moveaxis: _mover(torch.moveaxis, "moveaxis"),
    torch.unsqueeze: _mover(torch.unsqueeze, "unsqueeze"),
    torch.unflatten: _mover(torch.unflatten, "unflatten"),
    torch.flip: _mover(torch.flip, "flip", 0, "dims"),
    torch.roll: _mover(torch.roll, "roll", 1, "dims"),
    torch.repeat_interleave: _mover(torch.repeat_interleave, "repeat_interleave", 1, "dim"),
    torch.narrow: _mover(torch.narrow, "narrow", 0, "dim"),
    torch.select: _mover(torch.select, "select", 0, "dim"),
    torch.index_select: _mover(torch.index_select, "index_select", 0, "dim"),
    torch.rot90: _mover(torch.rot90, "rot90", 1, "dims"),
    torch.chunk: _split(torch.chunk, "chunk"),
    torch.split: _split(torch.split, "split"),
    torch.tensor_split: _split(torch.tensor_split, "tensor_split"),
    torch.unbind: _split(torch.unbind, "unbind"),
    F.pad: _pad,
    F.unfold: _unfold,
    F.fold: _fold,
    F.interpolate: _interpolate,
    F.pixel_unshuffle: _mover(F.pixel_unshuffle, "pixel_unshuffle"),
    F.pixel_shuffle: _mover(F.pixel_shuffle, "pixel_shuffle"),
    F.channel_shuffle: _mover(F.channel_shuffle, "channel_shuffle"),
    torch.einsum: _einsum,
    F.linear: _linear,
    **{f: _convolved(f) for f in (F.conv1d, F.conv2d, F.conv3d)},
    **dict.fromkeys(_MATMUL, matrix_product),
}

METHODS: dict[str, Rule] = {
    **{n: _method(n) for n in ("permute", "transpose", "swapaxes", "movedim", "unsqueeze")},
    **{n: _method(n) for n in ("moveaxis", "unflatten")},
    "expand": _expand,
    "expand_as": _expand_as,
    "repeat": _repeat,
    "repeat_interleave": _method("repeat_interleave", 1, "dim"),
    "flip": _method("flip", 0, 1, 2, "dims"),
    "roll": _method("roll", 1, "dims"),
    **{n: _method(n, 0, "dim") for n in ("narrow", "select", "index_select")},
    "rot90": _method("rot90", 1, "dims"),
    **{n: _split(getattr(torch, n), n) for n in ("chunk", "split", "tensor_split", "unbind")},
    **dict.fromkeys(("matmul", "bmm", "mm", "__matmul__"), matrix_product),
}

MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), _constant_pad),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), _constant_pad),
    **{
        kind: _moving_module(kind.__name__)
        for kind in (
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
            *(nn.Unfold, nn.PixelUnshuffle, nn.PixelShuffle, nn.ChannelShuffle),
        )
    },
    nn.Unflatten: lambda b, m, x: rearranged(b, x, m, "Unflatten"),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _upsample),
    nn.Fold: lambda b, m, x: folded_back(b, x, m),
}
