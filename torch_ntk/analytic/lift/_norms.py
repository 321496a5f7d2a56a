"""Layer and group normalization, in the cases in which their infinite-width limit is exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..operations import Normalization
from ._builder import Builder
from ._sums import add_known
from ._values import Value, is_trained


def rms_norm(b: Builder, x: Any, shape: tuple[int, ...], weight: Any, eps: float | None) -> Value:
    """Read `F.rms_norm`, a layer normalization that subtracts no mean and adds no shift."""
    eps = torch.finfo(b.dtype).eps if eps is None else eps
    return normalized_shape(b, x, shape, weight, None, eps, less_mean=False)


def normalized_shape(
    b: Builder,
    x: Any,
    shape: tuple[int, ...],
    weight: Any,
    bias: Any,
    eps: float,
    less_mean: bool = True,
) -> Value:
    """Read `F.layer_norm` over all features of a sample, or over each position's channels."""
    v = b.value(x, "a layer normalization")
    if v.spatial and shape == (v.channels,) and v.axis == len(v.spatial):
        v = _less_mean(b, v, (v.axis,)) if less_mean else v
        return _normalize(b, v, weight, bias, eps, each_position=True)
    if shape != v.shape:
        raise b.refusal(
            f"layer normalization over {shape} of samples {v.shape}",
            "Its statistics have a limit only over all features of a sample, or over channels on "
            "the last axis.",
            f"Normalize over {v.shape}, or use GroupNorm.",
        )
    inner = v.unflattened if v.unflattened is not None else v
    if weight is not None and (inner.positions != (1, 1)):
        raise b.refusal(
            "layer normalization with a gain per position",
            "Its tangent kernel couples equal positions only.",
            "Use elementwise_affine=False, or GroupNorm, whose gain is per channel.",
        )
    if less_mean:
        inner = _less_mean(b, inner, range(len(inner.shape)))
    made = _normalize(b, inner, weight, bias, eps)
    return b.flatten(made) if inner.spatial and not v.spatial else made


def group_norm(b: Builder, x: Any, groups: int, weight: Any, bias: Any, eps: float) -> Value:
    """Read `F.group_norm`. In the limit all groups have the same statistics."""
    b.channels_first(x, "a group normalization")
    v = b.value(x, "a group normalization")
    if v.channels % groups:
        raise b.refusal(
            f"group normalization of {v.channels} channels in {groups} groups",
            "All groups have as many channels.",
            "Choose a divisor of the number of channels.",
        )
    if groups == v.channels:
        raise b.refusal(
            "group normalization with one channel per group",
            "The statistics of a single channel stay random however wide the network is.",
            "Use fewer groups.",
        )
    if groups > 1 and not v.gaussian:
        raise b.refusal(
            "group normalization of features that are not Gaussian",
            "Groups of them may differ.",
            "Normalize the output of an NTK layer, or use one group.",
        )
    v = _less_mean(b, v, range(len(v.shape)))
    return _normalize(b, v, weight, bias, eps)


def _less_mean(b: Builder, v: Value, axes: Iterable[int]) -> Value:
    """Return features minus their mean over some axes of a sample.

    The mean of sums of layers' outputs is 0 in the limit. Only a known term of a sum has another
    mean, which is subtracted from that term.
    """
    if v.gaussian or v.centred:
        return v
    if v.terms is None:
        raise b.refusal(
            "a normalization of features that are not Gaussian",
            "Their mean over channels is not 0, which the recursion needs.",
            "Normalize the output of an NTK layer, before the activation; or use RMSNorm.",
        )
    random, known = v.terms
    dims = [1 + axis for axis in axes]
    return add_known(b, random, known.map(lambda t: t - t.mean(dims, keepdim=True)))


def _normalize(
    b: Builder, v: Value, weight: Any, bias: Any, eps: float, each_position: bool = False
) -> Value:
    for name, parameter, value in (("weight", weight, 1.0), ("bias", bias, 0.0)):
        if parameter is not None and not _all(parameter, value):
            raise b.refusal(
                f"a normalization whose {name} is not {value:g} everywhere",
                "The limit is taken at initialization.",
                f"Initialize its {name} to {value:g}.",
            )
    b.uses([p for p in (weight, bias) if is_trained(p)])
    made = b.linear_step(Normalization(eps, is_trained(weight), is_trained(bias), each_position), v)
    if v.gained or not made.gained:
        # With two gains, a function after this normalization would need the derivatives by both.
        # It is refused, because the value has a gain (`gained`) and no `ungained`.
        return made
    plain = b.linear_step(Normalization(eps, False, is_trained(bias), each_position), v)
    return replace(made, ungained=replace(plain, gained=False, by_gain=True))


def _all(parameter: Tensor, value: float) -> bool:
    return bool(torch.all(parameter.detach() == value))
