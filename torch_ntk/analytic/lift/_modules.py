"""The rules for modules, by their exact type, and the modules that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from ... import nn as ntk
from ...activations._lookup import is_registered
from ...nn._inventory import NTK_TYPES
from . import _layers, _norms, _position_functions, _positions, _sequences
from ._builder import Builder
from ._elementwise import activation
from ._functions import RULES, alpha_dropout
from ._own_activations import OWN
from ._values import Features

ModuleRule = Callable[[Builder, Any, Any], Any]

ACTIVATIONS: frozenset[type[nn.Module]] = frozenset(
    {
        nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
        nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink,
        nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
        nn.Threshold, *OWN,
    }
)  # fmt: skip


def _identity(b: Builder, module: nn.Module, x: Any) -> Features:
    return x  # type: ignore[no-any-return]


_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLINGS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOLED_AXES: dict[type[nn.Module], int] = {
    kind: axes for kinds in (_POOLINGS, _ADAPTIVE_POOLINGS) for axes, kind in enumerate(kinds, 1)
}


def _average(b: Builder, m: Any, x: Any) -> Features:
    divisor = getattr(m, "divisor_override", None)
    windows = m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor
    return _positions.average_pooled(b, x, *windows, axes=_POOLED_AXES[type(m)])


def _adaptive(b: Builder, m: Any, x: Any) -> Features:
    return _positions.adaptively_pooled(b, x, m.output_size, axes=_POOLED_AXES[type(m)])


# Outside of `training=True` every module is in eval mode, in which dropout does nothing.


def _dropout(b: Builder, m: Any, x: Any) -> Features:
    return RULES[F.dropout](b, x, m.p, m.training)  # type: ignore[no-any-return]


def _channel_dropout(b: Builder, m: Any, x: Any) -> Features:
    return RULES[F.dropout2d](b, x, m.p, m.training)  # type: ignore[no-any-return]


def _alpha_dropout(b: Builder, m: Any, x: Any) -> Features:
    return alpha_dropout(b, x, m.p, m.training)


def _flatten(b: Builder, m: nn.Flatten, x: Any) -> Features:
    return _positions.flattened(b, x, m.start_dim, m.end_dim)


def _activation(b: Builder, m: Any, x: Any) -> Features:
    trained = [name for name, p in m.named_parameters() if p.requires_grad]
    if trained:
        raise b.refusal(
            f"{type(m).__name__} whose {', '.join(trained)} is trained",
            "The limit has no place for a trained parameter of an activation.",
            "Freeze it with requires_grad_(False).",
        )
    return activation(b, x, m, m)


DROPOUTS: frozenset[type[nn.Module]] = frozenset(
    {
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        *(nn.AlphaDropout, nn.FeatureAlphaDropout),
    }
)
"""Modules that a rule reads even if their input is known, because they may be random."""

MODULES: dict[type[nn.Module], ModuleRule] = {
    **dict.fromkeys((nn.Linear, ntk.NTKLinear), _layers.dense),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _layers.convolution),
    **dict.fromkeys((ntk.NTKConv1d, ntk.NTKConv2d, ntk.NTKConv3d), _layers.convolution),
    **dict.fromkeys(
        (
            *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
            *(ntk.NTKConvTranspose1d, ntk.NTKConvTranspose2d, ntk.NTKConvTranspose3d),
        ),
        _layers.transposed_convolution,
    ),
    ntk.NTKConvLocal2d: _layers.local_convolution,
    ntk.NTKSelfAttention: _sequences.self_attention,
    ntk.NTKRNN: _sequences.recurrent,
    nn.Identity: _identity,
    nn.Dropout: _dropout,
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _channel_dropout),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), _alpha_dropout),
    nn.Flatten: _flatten,
    **dict.fromkeys(_POOLINGS, _average),
    **dict.fromkeys(_ADAPTIVE_POOLINGS, _adaptive),
    **_position_functions.MODULES,
    nn.GLU: lambda b, m, x: RULES[F.glu](b, x, m.dim),
    nn.LayerNorm: lambda b, m, x: _norms.normalized_shape(
        b, x, tuple(m.normalized_shape), m.weight, m.bias, m.eps
    ),
    nn.RMSNorm: lambda b, m, x: _norms.rms_norm(b, x, tuple(m.normalized_shape), m.weight, m.eps),
    nn.GroupNorm: lambda b, m, x: _norms.group_norm(b, x, m.num_groups, m.weight, m.bias, m.eps),
    **dict.fromkeys(ACTIVATIONS, _activation),
    nn.PReLU: lambda b, m, x: RULES[F.prelu](b, x, m.weight),
}

# Why other modules have no limit, and a remedy, by exact type.
REFUSED: dict[type[nn.Module], tuple[str, str]] = {
    **dict.fromkeys(
        (
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
            *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
            *(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
            *(nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d),
        ),
        (
            "The maximum of correlated Gaussian features has no closed covariance.",
            "Use average pooling.",
        ),
    ),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        (
            "It couples the samples of a batch during training, and its running statistics are "
            "not part of the limit.",
            "Remove it, or use LayerNorm or GroupNorm.",
        ),
    ),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        (
            "The statistics of a single channel stay random however wide the network is.",
            "Use GroupNorm with few groups.",
        ),
    ),
    **dict.fromkeys(
        (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax),
        ("Softmax over features has no closed limit.", "Apply it outside the kernel."),
    ),
    **dict.fromkeys(
        (
            *(nn.MultiheadAttention, nn.Transformer),
            *(nn.TransformerEncoder, nn.TransformerEncoderLayer),
            *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
        ),
        (
            "The softmax of products of independent keys and queries, divided by the root of "
            "their dimension, stays random however wide the network is.",
            "Use NTKSelfAttention, whose scaling='linear' ties keys and queries.",
        ),
    ),
    nn.RNN: (
        "In the standard parameterization the tangent kernel diverges as the width grows.",
        "Use torch_ntk.ntk_parameterize(model), or NTKRNN.",
    ),
    **dict.fromkeys(
        (nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell),
        (
            "It uses the same weights at every step, and its gates multiply values that depend on "
            "these weights.",
            "Use NTKRNN, whose limit is known.",
        ),
    ),
    **dict.fromkeys(
        (nn.Embedding, nn.EmbeddingBag),
        ("Its rows have no width that could grow.", "Pass the embedded inputs."),
    ),
    **dict.fromkeys(
        (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
        (
            "A root of sums of powers of correlated features has no closed covariance.",
            "Use average pooling.",
        ),
    ),
    **dict.fromkeys(
        (nn.LocalResponseNorm, nn.CrossMapLRN2d),
        (
            "A sum over a few neighbouring channels stays random however wide the network is.",
            "Use GroupNorm.",
        ),
    ),
    nn.Bilinear: (
        "This package has no such layer in NTK parameterization.",
        "Multiply two branches that end in separate layers.",
    ),
}

UNKNOWN = (
    "Its infinite-width limit is not known.",
    "Networks may be built from NTK layers, elementwise activations, average pooling, sums, "
    "products of independent branches, concatenation, LayerNorm, GroupNorm, and operations that "
    "move positions or mix them by a known matrix. If it is your own elementwise activation, "
    "register its dual functions with torch_ntk.activations.register_dual.",
)

# Functions without a rule whose modules are refused, by name: torch has each of them several times.
_AS_MODULES: dict[str, type[nn.Module]] = {
    "batch_norm": nn.BatchNorm2d,
    "instance_norm": nn.InstanceNorm2d,
    "local_response_norm": nn.LocalResponseNorm,
    "scaled_dot_product_attention": nn.MultiheadAttention,
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), nn.Softmax),
    **{f"{kind}max_pool{n}d": nn.MaxPool2d for kind in ("", "adaptive_") for n in (1, 2, 3)},
    **{f"fractional_max_pool{n}d": nn.MaxPool2d for n in (2, 3)},
    **{f"lp_pool{n}d": nn.LPPool2d for n in (1, 2, 3)},
}


def module_rule(kind: type[nn.Module]) -> ModuleRule | None:
    """Return the rule for modules of this exact type, which may be one from `register_dual`."""
    return _activation if is_registered(kind) else MODULES.get(kind)


def stands_alone(module: nn.Module) -> bool:
    """Whether a module is read or refused as a whole, and not traced into."""
    kind = type(module)
    return module_rule(kind) is not None or kind in REFUSED or isinstance(module, NTK_TYPES)


def why_unknown(kind: type[nn.Module]) -> tuple[str, str]:
    """Return why a class without a rule is refused, and a remedy."""
    for layer in NTK_TYPES:
        if kind is not layer and issubclass(kind, layer):
            return (
                f"It is a subclass of {layer.__name__} and may compute something else.",
                f"Use {layer.__name__} itself, and put the additions into a module around it.",
            )
    return UNKNOWN


def why_unknown_function(name: str) -> tuple[str, str]:
    """Return why a function or method without a rule is refused, and a remedy."""
    return REFUSED[_AS_MODULES[name]] if name in _AS_MODULES else UNKNOWN
