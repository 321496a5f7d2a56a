"""Averages and sums over positions, and functions that flatten, view and squeeze."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operations import Pool
from ._arrange import flatten_all, rearranged
from ._builder import Builder
from ._values import Features, Value

AxisPool = Callable[[Tensor, int], Tensor]
"""A function of `[N, 1, L]` and the index of an axis to the averages `[N, 1, L_out]`."""


def average(b: Builder, x: Any, pools: Sequence[AxisPool | None], factor: float = 1.0) -> Value:
    """Return features averaged over positions, along one axis after the other.

    Args:
        b: The builder that collects steps.
        x: The features.
        pools: The average along each axis of positions; None leaves an axis as it is.
        factor: A constant factor, with which an average becomes a sum.
    """
    v = b.value(x, "a pooling")
    if len(v.spatial) != len(pools):
        raise b.refusal(
            f"an average over {len(pools)} axes of samples of shape {v.shape}",
            "It needs channels and as many axes of positions.",
            "Put it before the flattening.",
        )
    matrices: list[Tensor] = []
    spatial: list[int] = []
    for size, pool in zip(v.spatial, pools, strict=True):
        eye = torch.eye(size, dtype=torch.float64)
        try:
            matrix = eye if pool is None else pool(eye[:, None], len(spatial))[:, 0].T
        except RuntimeError as error:  # as torch refuses it in the forward
            raise b.refusal(
                f"an average over positions {v.spatial}",
                f"{error}.",
                "Use windows that lie in the padded input.",
            ) from error
        matrices.append(matrix.contiguous())
        spatial.append(matrix.shape[0])
    matrices += [torch.eye(1, dtype=torch.float64)] * (2 - len(matrices))
    matrices = [matrices[0], functools.reduce(torch.kron, matrices[1:])]
    if v.positions == (1, 1) and all(len(m) == 1 for m in matrices):
        # An average of a single position is a factor.
        weight = factor * float(matrices[0]) * float(matrices[1])
        return b.value(b.scale(v, weight))
    # Averages of jointly Gaussian features are Gaussian, and those of independent ones independent.
    rows, columns = matrices[0] * factor, matrices[1]
    made = b.linear_step(Pool(rows, columns), v, spatial=tuple(spatial))

    def both() -> tuple[Tensor, Tensor]:
        matrix = torch.kron(rows, columns).to(b.device, b.dtype)[None]
        return matrix, matrix

    return replace(made, image=(v, both))


def average_pooled(
    b: Builder,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    axes: int,
) -> Value:
    """Return `F.avg_pool1d`, `F.avg_pool2d` or `F.avg_pool3d` of features."""
    _check_axes(b, f"avg_pool{axes}d", x, axes)
    pools = _windows(kernel_size, stride, padding, ceil_mode, count_include_pad, axes)
    if divisor_override is None:
        return average(b, x, pools)
    if ceil_mode or not count_include_pad:
        raise b.refusal(
            "average pooling with divisor_override and windows of different sizes",
            "Their weights are not products over the axes.",
            "Omit divisor_override, or use a padding with which all windows have the same size.",
        )
    return average(b, x, pools, math.prod(_tuple(kernel_size, axes)) / divisor_override)


def adaptively_pooled(b: Builder, x: Any, output_size: Any, *, axes: int) -> Value:
    """Return `F.adaptive_avg_pool1d` to `F.adaptive_avg_pool3d` of features."""
    _check_axes(b, f"adaptive_avg_pool{axes}d", x, axes)
    return average(b, x, adaptive(output_size, axes))


def _check_axes(b: Builder, what: str, x: Any, axes: int) -> None:
    b.channels_first(x, what)
    if len(x.shape) != 1 + axes:
        raise b.refusal(
            f"{what} on samples of shape {tuple(x.shape)}",
            f"It needs {axes} axes of positions.",
            "Put it before the flattening, or reshape the samples.",
        )


def _windows(
    kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, axes: int
) -> list[AxisPool]:
    """Return the averages of `nn.AvgPool1d`, `nn.AvgPool2d` or `nn.AvgPool3d`, one per axis."""
    sizes = _tuple(kernel, axes)
    steps = sizes if stride is None or stride == [] else _tuple(stride, axes)
    paddings = _tuple(padding, axes)

    def pool(eye: Tensor, axis: int) -> Tensor:
        return F.avg_pool1d(
            eye, sizes[axis], steps[axis], paddings[axis], ceil_mode, count_include_pad
        )

    return [pool] * axes


def adaptive(size: Any, axes: int) -> list[AxisPool]:
    """Return the averages of `nn.AdaptiveAvgPool1d` to `nn.AdaptiveAvgPool3d`, one per axis."""
    sizes = _tuple(size, axes)

    def pool(eye: Tensor, axis: int) -> Tensor:
        wanted = sizes[axis]
        return eye if wanted is None else F.adaptive_avg_pool1d(eye, wanted)

    return [pool] * axes


def over_axes(b: Builder, x: Any, dims: Any, keepdim: bool, total: bool) -> Features:
    """Return `x.mean(dims)` or, with `total`, `x.sum(dims)` over axes of positions."""
    shape = tuple(x.shape)
    channels = x.axis + 1
    axes = {d % (len(shape) + 1) for d in _dims(b, dims)}
    if not axes or axes & {0, channels}:
        raise b.refusal(
            f"a {'sum' if total else 'mean'} over axes {sorted(axes)}",
            f"Only positions can be averaged; the number of channels, axis {channels}, tends to "
            "infinity.",
            "Average over axes of positions; a layer mixes channels.",
        )
    places = [i for i in range(1, len(shape) + 1) if i != channels]

    def mean(eye: Tensor, axis: int) -> Tensor:
        return eye.mean(-1, keepdim=True) if places[axis] in axes else eye

    count = math.prod(shape[a - 1] for a in axes) if total else 1
    v = average(b, x, [mean] * len(places), float(count))
    return v if keepdim else squeezed(b, v, sorted(axes))


def flattened(b: Builder, x: Any, start: int, end: int) -> Features:
    """Return `flatten` of all axes of a sample, or of some of them."""
    axes = len(x.shape) + 1
    if start % axes == 0 and axes > 1:
        raise b.refusal(
            "a flattening of axis 0", "It mixes the samples of a batch.", "Flatten from axis 1 on."
        )
    if start % axes == 1 and end % axes == axes - 1:
        return flatten_all(b, x)
    return rearranged(b, x, lambda t: t.flatten(start, end), "a flattening")


def viewed(b: Builder, x: Any, sizes: Sequence[Any]) -> Features:
    """Return `view` or `reshape` of features."""
    shape = tuple(x.shape)
    wanted = [int(s) for s in sizes]
    if len(wanted) == 1 + len(shape) and tuple(wanted[1:]) == shape:
        return x  # type: ignore[no-any-return]
    if wanted[0] not in (-1, *b.samples):
        raise b.refusal(
            f"a reshaping of samples {shape} to {tuple(wanted)}",
            "It mixes samples and features.",
            "Keep the samples on axis 0, x.reshape(x.shape[0], ...).",
        )
    if len(wanted) == 2 and wanted[1] in (-1, math.prod(shape)):
        return flatten_all(b, x)
    # `rearranged` finds out what it does from two samples.
    two = [wanted[0] if wanted[0] == -1 else 2, *wanted[1:]]
    what = f"a reshaping to {tuple(wanted[1:])}"
    return rearranged(b, x, lambda t: t.reshape(two), what)


def squeezed(b: Builder, x: Any, dims: Sequence[int] | None) -> Features:
    """Return `squeeze` of axes that have one position."""
    axes = len(x.shape) + 1
    places = [d for d in range(1, axes) if d != x.axis + 1]
    which = tuple(places if dims is None else [d % axes for d in dims])
    if any(d in (0, x.axis + 1) for d in which):
        raise b.refusal(
            "a squeeze of the batch or of the channels",
            "The result must have both axes.",
            "Squeeze an axis of positions, x.squeeze(2); a single output may be squeezed last.",
        )
    return rearranged(b, x, lambda t: t.squeeze(which), "a squeeze")


def _tuple(x: Any, axes: int) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,) * axes


def _dims(b: Builder, dims: Any) -> list[int]:
    if dims is None:
        raise b.refusal(
            "a mean or sum over everything",
            "It would mix the samples.",
            "Name the axes of positions, x.mean((2, 3)).",
        )
    return [dims] if isinstance(dims, int) else [int(d) for d in dims]
