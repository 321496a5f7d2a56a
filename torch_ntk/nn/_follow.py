"""Trace a network to find what follows each layer, and which weights its code reads directly.

The network is traced symbolically (`torch.fx`) on a copy that shares only the parameters, so that a
forward method which counts its calls or keeps an activation does not change the caller's model. If
the whole network cannot be traced, because control flow depends on data, its parts are traced from
the inside out; a part that cannot be traced is treated as opaque within the enclosing part.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from .._functional import faithful_copy
from ._gain import DEFAULT_GAIN, function_gain, module_gain
from ._inventory import STANDARD_TYPES

_TRANSPARENT_MODULES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    _NormBase,
    _DropoutNd,
    _ConstantPadNd,
    _ReflectionPadNd,
    _ReplicationPadNd,
    _AvgPoolNd,
    _AdaptiveAvgPoolNd,
    _MaxPoolNd,
    _AdaptiveMaxPoolNd,
    _LPPoolNd,
)
"""Modules that may stand between a layer and its activation: they reshape, join, pool, drop or
normalize."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TRANSPARENT_NAMES = _words(
    "alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout feature_dropout "
    "batch_norm instance_norm layer_norm group_norm rms_norm local_response_norm "
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d lp_pool2d "
    "lp_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "cat concat concatenate stack pad interpolate pixel_shuffle pixel_unshuffle channel_shuffle "
    "flatten unflatten reshape view view_as permute transpose movedim moveaxis swapaxes swapdims "
    "squeeze unsqueeze expand expand_as contiguous clone chunk split unbind select narrow "
    "mean amax float double half bfloat16 to type_as"
)
"""Functions of `torch` and `torch.nn.functional` and methods of tensors that do the same."""

_SHAPE_NAMES = _words("size dim ndimension numel stride device dtype shape ndim")
"""Methods and attributes of a tensor that do not depend on its values."""


def _functions(names: frozenset[str]) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for namespace in (torch, F):
        found.update(
            (getattr(namespace, n), n) for n in names if callable(getattr(namespace, n, 0))
        )
    return found


_TRANSPARENT_FUNCTIONS = {**_functions(_TRANSPARENT_NAMES), operator.getitem: "getitem"}


@dataclass
class Uses:
    """The uses of a model's layers and parameters, as found by tracing.

    Attributes:
        gains: For each traced layer, the gains for everything that follows it. `None` means that
            the layer's output leaves the traced part, so that what follows is not known.
        read: The parameters whose values the network's own code reads instead of calling the layer.
    """

    gains: dict[nn.Module, set[float | None]] = field(default_factory=dict)
    read: set[Tensor] = field(default_factory=set)


class _LayerTracer(fx.Tracer):
    """A tracer that does not enter layers, modules of `torch.nn`, and untraceable parts."""

    def __init__(self, closed: set[nn.Module]) -> None:
        super().__init__()
        self._closed = closed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            m in self._closed
            or isinstance(m, (*STANDARD_TYPES, *_TRANSPARENT_MODULES))
            or super().is_leaf_module(m, module_qualified_name)
        )


def find_uses(model: nn.Module) -> Uses:
    """Trace `model` to find what follows each of its layers, and which weights its code reads.

    The result refers to modules and parameters of `model`. It does not contain layers that are in
    no traceable part.
    """
    if isinstance(model, STANDARD_TYPES):
        return Uses({model: {DEFAULT_GAIN}})
    copied, _ = faithful_copy(model, shared=model.parameters())
    devices = list(range(torch.cuda.device_count())) if _cuda_in_use() else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uses = _uses_in(copied, set(), DEFAULT_GAIN) or _uses_in_parts(copied)
    originals = dict(zip(copied.modules(), model.modules(), strict=True))
    return Uses({originals[layer]: gains for layer, gains in uses.gains.items()}, uses.read)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _uses_in_parts(root: nn.Module) -> Uses:
    traced: dict[nn.Module, Uses] = {}
    closed: set[nn.Module] = set()
    tracer = _LayerTracer(closed)
    # modules() lists a child after its parent, so that the reversed order goes from the inside out.
    # The root comes last; it may be traceable once parts that are not are treated as opaque.
    for part in reversed(list(root.modules())):
        if part is not root and (tracer.is_leaf_module(part, "") or not any(part.children())):
            continue
        uses = _uses_in(part, closed, DEFAULT_GAIN if part is root else None)
        if uses is None:
            closed.add(part)
        else:
            traced[part] = uses
    merged = Uses()
    for part, uses in traced.items():
        merged.read |= uses.read
        wider = [other for other in traced if other is not part and part in set(other.modules())]
        for layer, gains in uses.gains.items():
            # An enclosing part that was traced has found all of this, and what follows outside.
            if not any(layer in traced[other].gains for other in wider):
                merged.gains.setdefault(layer, set()).update(gains)
    return merged


def _uses_in(part: nn.Module, closed: set[nn.Module], at_the_end: float | None) -> Uses | None:
    """The uses that one trace of `part` finds; None if it cannot be traced."""
    try:
        graph = _LayerTracer(closed).trace(part)
    except Exception:
        # The caller's forward runs on symbolic proxies here, and may raise any error if it depends
        # on their values. Every error therefore means that this part cannot be traced.
        return None
    uses = Uses()
    modules = dict(part.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if node.op == "get_attr" and not all(map(_reads_shape, node.users)):
            value = operator.attrgetter(node.target)(part)
            if isinstance(value, Tensor):
                uses.read.add(value)
        elif node.op == "call_module" and isinstance(modules[node.target], STANDARD_TYPES):
            gains = uses.gains.setdefault(modules[node.target], set())
            gains.update(_gains_after(node, modules, at_the_end))
    return uses


def _gains_after(
    node: fx.Node, modules: dict[str, nn.Module], at_the_end: float | None
) -> Iterator[float | None]:
    for user in node.users:
        target: Any = user.target
        if user.op == "output":
            yield at_the_end
        elif user.op == "call_module":
            if isinstance(modules[target], _TRANSPARENT_MODULES):
                yield from _gains_after(user, modules, at_the_end)
            else:
                yield module_gain(modules[target])
        elif _reads_shape(user):
            continue
        elif _is_transparent(user):
            yield from _gains_after(user, modules, at_the_end)
        else:
            yield function_gain(target, user.args, user.kwargs)


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1] in _SHAPE_NAMES
    return node.op == "call_method" and node.target in _SHAPE_NAMES


def _is_transparent(node: fx.Node) -> bool:
    names = _TRANSPARENT_NAMES if node.op == "call_method" else _TRANSPARENT_FUNCTIONS
    return node.target in names
