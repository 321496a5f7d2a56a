"""The rules for functions, methods and attributes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...activations._lookup import is_registered
from ..operations import Dropout
from . import _norms, _position_functions, _positions
from ._arrange import rearranged
from ._builder import Builder
from ._concatenation import concatenated, stacked
from ._elementwise import (
    FUNCTIONS,
    METHODS,
    activation,
    combine,
    constant,
    is_random,
    pointwise,
)
from ._in_place import arguments
from ._own_activations import power
from ._values import Data, Elementwise, Features, Joined

Rule = Callable[..., Any]

_DROPOUTS = (F.dropout, torch.dropout)
_CHANNEL_DROPOUTS = (F.dropout1d, F.dropout2d, F.dropout3d)
_ALPHA_DROPOUTS = (F.alpha_dropout, F.feature_alpha_dropout)
DROPOUT_FUNCTIONS = frozenset({*_DROPOUTS, *_CHANNEL_DROPOUTS, *_ALPHA_DROPOUTS})
"""Functions that a rule reads even if their input is known, because they are random."""

# The largest power for which closed forms are used: the coefficients of higher ones are large.
_LARGEST_POWER = 12
_NO_MEAN = "Features with an added constant do not have zero mean."


def _arithmetic(operation: Callable[[Any, Any], Any], name: str) -> Rule:
    def rule(b: Builder, x: Any, y: Any, *, alpha: float = 1) -> Features:
        if alpha != 1:
            y = combine(b, y, alpha, operator.mul, "mul")
        return combine(b, x, y, operation, name)

    return rule


def _elementwise_rule(function: Callable[..., Any]) -> Rule:
    """Return the rule of an elementwise function of features and of numbers or other features."""
    what = getattr(function, "__name__", str(function))

    def rule(b: Builder, *args: Any, **named: Any) -> Features:
        if sum(is_random(a) for a in args) != 1 or any(is_random(v) for v in named.values()):
            return pointwise(b, functools.partial(function, **named), _flat(b, args, what), what)
        place = next(i for i, a in enumerate(args) if is_random(a))
        if place:
            return pointwise(b, functools.partial(function, **named), args, what)
        x, rest = args[0], args[1:]
        rest, named = _others(function, x, rest, named)
        rest = tuple(constant(b, v, what) for v in rest)
        named = {k: constant(b, v, what) for k, v in named.items()}
        plain = not rest and not {k: v for k, v in named.items() if k != "training"}
        lookup: Any = function if plain else None
        if not plain and not rest and is_registered(function):
            lookup = functools.partial(function, **named)
        if what in ("pow", "float_power") and len(rest) == 1:
            lookup = _power(rest[0])
        return activation(b, x, lambda t: function(t, *rest, **named), lookup)

    return rule


def _flat(b: Builder, args: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if any(is_random(a) for a in args):
        return args
    raise b.refusal(
        f"{what} with features by keyword",
        "Its arguments have other names.",
        "Pass the features by position.",
    )


def _power(exponent: Any) -> Any:
    """Return the dual functions of a power with a small positive integer exponent, or None."""
    whole = isinstance(exponent, (int, float)) and exponent == int(exponent)
    return power(int(exponent)) if whole and 1 <= exponent <= _LARGEST_POWER else None


def function_rule(function: Any) -> Rule | None:
    """Return the rule for calls of a function, which may be one from `register_dual`; or None."""
    return _elementwise_rule(function) if is_registered(function) else RULES.get(function)


def _others(
    function: Callable[..., Any], x: Any, rest: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments besides the features, without those that do not change the function."""
    bound = arguments(function, (x, *rest), named)
    if any(v is x for v in bound.values()):  # built-in functions do not name their arguments
        rest, named = (), {k: v for k, v in bound.items() if v is not x}
    return rest, {k: v for k, v in named.items() if not (k == "inplace" or v is None)}


def _method(name: str) -> Rule:
    base = name.removesuffix("_")
    plain = getattr(torch, base, None)

    def rule(b: Builder, x: Any, *rest: Any, **named: Any) -> Features:
        if not is_random(x) or any(is_random(v) for v in (*rest, *named.values())):
            values = (x, *rest, *named.values())
            keys = tuple(named)

            def function(*given: Any) -> Any:
                args, options = given[: len(given) - len(keys)], given[len(given) - len(keys) :]
                method = getattr(args[0], base)
                return method(*args[1:], **dict(zip(keys, options, strict=True)))

            return pointwise(b, function, values, base)
        rest = tuple(constant(b, v, base) for v in rest)
        named = {k: constant(b, v, base) for k, v in named.items()}
        lookup: Any = plain if not rest and not named else None
        if base in ("pow", "float_power") and len(rest) == 1:
            lookup = _power(rest[0])
        return activation(b, x, lambda t: getattr(t, base)(*rest, **named), lookup)

    return rule


def _leaky(b: Builder, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Features:
    module = torch.nn.LeakyReLU(negative_slope)
    return activation(b, x, module, module)


def _gelu(b: Builder, x: Any, approximate: str = "none") -> Features:
    module = torch.nn.GELU(approximate)
    return activation(b, x, module, module)


def _flatten(b: Builder, x: Any, start_dim: int = 0, end_dim: int = -1) -> Features:
    return _positions.flattened(b, x, start_dim, end_dim)


def _view(b: Builder, x: Any, *sizes: Any, shape: Any = None) -> Features:
    found = _position_functions.plain(b, shape if shape is not None else sizes, samples=True)
    if len(found) == 1 and isinstance(found[0], (tuple, list)):
        found = found[0]
    return _positions.viewed(b, x, found)


def _reduce(total: bool) -> Rule:
    def rule(b: Builder, x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Features:
        return _positions.over_axes(b, x, dim, keepdim, total)

    return rule


def _squeeze(b: Builder, x: Any, dim: Any = None) -> Features:
    dims = [dim] if isinstance(dim, int) else dim
    return _positions.squeezed(b, x, dims)


def _size(b: Builder, x: Any, dim: int | None = None) -> Any:
    shapes = [torch.Size((n, *x.shape)) for n in b.samples]
    if dim is None:
        return Data(*shapes)
    return Data(shapes[0][dim], shapes[1][dim])


def _same(b: Builder, x: Any, *_: Any, **__: Any) -> Features:
    return x  # type: ignore[no-any-return]


def _dropout(one_mask: bool) -> Rule:
    def rule(
        b: Builder, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Features:
        if not (training and p > 0):
            return x  # type: ignore[no-any-return]
        _check_follows_mode(b, "F.dropout")
        if one_mask:
            b.channels_first(x, "a dropout of channels")
        return dropped(b, x, p, one_mask)

    return rule


def alpha_dropout(
    b: Builder, x: Any, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Features:
    """Read `F.alpha_dropout` and `F.feature_alpha_dropout`, which have no limit during training."""
    if training and p > 0:
        _check_follows_mode(b, "F.alpha_dropout")
        raise b.refusal(
            "alpha dropout during training",
            "It replaces features by a constant, so that they do not have zero mean.",
            "Use nn.Dropout, or put it into eval mode.",
        )
    return x  # type: ignore[no-any-return]


def _check_follows_mode(b: Builder, what: str) -> None:
    """Raise an error for an active dropout although all modules are in eval mode."""
    if not b.training:
        raise b.refusal(
            f"{what} that is active in eval mode too",
            "Its masks are random even when the network is evaluated.",
            "Pass training=self.training, or use nn.Dropout; the limit with masks is "
            "analytic_ntk(..., training=True).",
        )


def dropped(b: Builder, x: Any, p: float, one_mask: bool = False) -> Features:
    """Return features after dropout with probability p, as during training."""
    if p == 0:
        return x  # type: ignore[no-any-return]
    if p == 1:
        raise b.refusal("dropout with p=1", "It drops all features.", "Use p < 1.")
    if isinstance(x, Joined):
        return Joined(tuple(b.value(dropped(b, part, p, one_mask)) for part in x.parts))
    v = b.value(x, "a dropout")
    if one_mask and v.unflattened is not None:
        raise b.refusal(
            "dropout of channels after a flattening",
            "The flattened features are no channels.",
            "Put it before the flattening, or use nn.Dropout, which drops single features.",
        )
    if v.unflattened is not None:
        return b.flatten(b.value(dropped(b, v.unflattened, p)))
    # Masked features are not Gaussian, but still sums with independent weights.
    made = replace(b.step(Dropout(1 - p, one_mask), (v,)), sources=v.sources)
    return replace(made, undropped=(v, 1 - p, one_mask)) if v.gaussian else made


def _layer_norm(
    b: Builder,
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Features:
    shape, weight, bias = _position_functions.plain(b, (normalized_shape, weight, bias))
    return _norms.normalized_shape(b, x, tuple(shape), weight, bias, eps)


def _rms_norm(
    b: Builder, x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Features:
    shape, weight = _position_functions.plain(b, (normalized_shape, weight))
    return _norms.rms_norm(b, x, tuple(shape), weight, eps)


def _group_norm(
    b: Builder, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Features:
    weight, bias = _position_functions.plain(b, (weight, bias))
    return _norms.group_norm(b, x, num_groups, weight, bias, eps)


def _prelu(b: Builder, x: Any, weight: Any) -> Features:
    """Read `F.prelu` and `nn.PReLU` with one slope, which is frozen."""
    slopes = _position_functions.plain(b, weight)
    if not isinstance(slopes, Tensor):
        raise b.refusal(
            "a PReLU whose slope is not a known tensor",
            "It must be the same function for all entries.",
            "Pass a buffer with one number, or use F.leaky_relu.",
        )
    if slopes.numel() != 1:
        raise b.refusal(
            f"a PReLU of {slopes.numel()} slopes",
            "Channels must have one distribution.",
            "Use nn.PReLU(1).",
        )
    if slopes.requires_grad:
        raise b.refusal(
            "a PReLU whose slope is trained",
            "The limit has no place for a trained slope.",
            "Freeze it with requires_grad_(False), or use nn.LeakyReLU.",
        )
    return _leaky(b, x, float(slopes))


def _glu(b: Builder, x: Any, dim: int = -1) -> Features:
    """Return the first half of the channels times the sigmoid of the second, independent half."""
    axes = len(x.shape) + 1
    if dim % axes != 1 + x.axis:
        raise b.refusal(
            f"a gated linear unit over axis {dim}",
            "Its halves must be channels.",
            "Move the channels to this axis, or pass the axis of the channels.",
        )
    what = "a gated linear unit"
    value = rearranged(b, x, lambda t: t.chunk(2, dim)[0], what)
    gate = rearranged(b, x, lambda t: t.chunk(2, dim)[1], what)
    opened = activation(b, gate, torch.sigmoid, torch.sigmoid)
    return combine(b, value, opened, operator.mul, "mul")


def _masked_fill(b: Builder, x: Any, mask: Any, value: Any) -> Features:
    if not _is_zero(value) or not isinstance(mask, Data):
        raise b.refusal(
            "masked_fill with another value than 0, or a mask of features",
            _NO_MEAN,
            "Fill with 0, with a mask that is part of the batch.",
        )
    kept = Data(*(~t.bool() for t in (mask.first, mask.second)))
    return combine(b, x, kept, operator.mul, "mul")


def _neg(b: Builder, x: Any) -> Features:
    return combine(b, x, -1.0, operator.mul, "mul")


def _is_zero(x: Any) -> bool:
    """Whether a number, or a known value for x1 and for x2, is 0."""
    sides = (x.first, x.second) if isinstance(x, Data) else (x,)
    return not any(bool(torch.as_tensor(side).any()) for side in sides)


def _fits(x: Any, features: Any) -> bool:
    """Whether x broadcasts to the shape of the features, and does not extend it."""
    if not isinstance(x, Data) or not x.is_tensor:
        return True
    sizes, samples = tuple(x.first.shape), tuple(features.shape)
    if len(sizes) > 1 + len(samples):
        return False
    sizes = sizes if len(sizes) <= len(samples) else sizes[1:]
    ends = samples[len(samples) - len(sizes) :]
    return all(s in (1, n) for s, n in zip(sizes, ends, strict=True))


def _where(b: Builder, condition: Any, x: Any, y: Any) -> Features:
    """Select between functions of one value, or apply a known mask that puts 0 elsewhere."""
    if isinstance(condition, Data) and isinstance(condition.first, Tensor):
        kept, other = (x, y) if is_random(x) else (y, x)
        if is_random(other) or not _is_zero(other) or not _fits(other, kept):
            raise b.refusal(
                "torch.where with a known mask and another value than 0, or zeros of another shape",
                _NO_MEAN,
                "Use 0 for the other value.",
            )
        mask = condition if kept is x else condition.map(operator.invert)
        return combine(b, kept, mask, operator.mul, "mul")
    return pointwise(b, torch.where, (condition, x, y), "torch.where")


def _cast(b: Builder, x: Any, *args: Any, **named: Any) -> Features:
    """Ignore a change of precision; truth values become 0 and 1."""
    if isinstance(x, Elementwise) and x(torch.zeros(1, dtype=torch.float64)).dtype == torch.bool:
        return pointwise(b, lambda t: t.double(), (x,), "a cast")
    for target in (*args, *named.values()):
        target = target.first if isinstance(target, Data) else target
        kind = target.dtype if isinstance(target, Tensor) else target
        if isinstance(kind, torch.dtype) and not kind.is_floating_point:
            raise b.refusal(
                f"a conversion of features to {kind}",
                "Its result has no derivative.",
                "Convert them to a floating-point type.",
            )
    return x  # type: ignore[no-any-return]


_NUMBERS: dict[str, tuple[Callable[[Any, Any], Any], tuple[Any, ...]]] = {
    "add": (operator.add, (operator.add, operator.iadd, torch.add)),
    "sub": (operator.sub, (operator.sub, operator.isub, torch.sub)),
    "mul": (operator.mul, (operator.mul, operator.imul, torch.mul)),
    "div": (operator.truediv, (operator.truediv, operator.itruediv, torch.div, torch.true_divide)),
}

_IN_PLACE: dict[Any, Callable[..., Any]] = {
    F.relu_: F.relu, F.elu_: F.elu, F.celu_: F.celu, F.selu_: F.selu, F.rrelu_: F.rrelu,
    F.hardtanh_: F.hardtanh,
}  # fmt: skip

RULES: dict[Any, Rule] = {
    **{f: _elementwise_rule(f) for f in FUNCTIONS},
    **{f: _arithmetic(op, name) for name, (op, keys) in _NUMBERS.items() for f in keys},
    torch.where: _where,
    **{in_place: _elementwise_rule(f) for in_place, f in _IN_PLACE.items()},
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky),
    F.gelu: _gelu,
    torch.cat: concatenated,
    torch.concat: concatenated,
    torch.concatenate: concatenated,
    torch.stack: stacked,
    torch.flatten: _flatten,
    torch.reshape: _view,
    torch.mean: _reduce(False),
    torch.sum: _reduce(True),
    F.avg_pool1d: functools.partial(_positions.average_pooled, axes=1),
    F.avg_pool2d: functools.partial(_positions.average_pooled, axes=2),
    F.avg_pool3d: functools.partial(_positions.average_pooled, axes=3),
    F.adaptive_avg_pool1d: functools.partial(_positions.adaptively_pooled, axes=1),
    F.adaptive_avg_pool2d: functools.partial(_positions.adaptively_pooled, axes=2),
    F.adaptive_avg_pool3d: functools.partial(_positions.adaptively_pooled, axes=3),
    **_position_functions.FUNCTIONS,
    torch.squeeze: _squeeze,
    **dict.fromkeys(_DROPOUTS, _dropout(False)),
    **dict.fromkeys(_CHANNEL_DROPOUTS, _dropout(True)),
    **dict.fromkeys(_ALPHA_DROPOUTS, alpha_dropout),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), _layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), _rms_norm),
    **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
    F.prelu: _prelu,
    F.glu: _glu,
    torch.masked_fill: _masked_fill,
    operator.neg: _neg,
    torch.neg: _neg,
}

TAKE_PARAMETERS = frozenset(
    {
        *(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm),
        *(F.group_norm, torch.group_norm, F.batch_norm, F.instance_norm, F.prelu, "prelu"),
    }
)
"""Functions that may take parameters, which are read or refused as the modules with these."""

METHOD_RULES: dict[str, Rule] = {
    **_position_functions.METHODS,
    **{name: _method(name) for name in METHODS},
    **{name: _arithmetic(op, name) for name, (op, _) in _NUMBERS.items()},
    **{f"{name}_": _arithmetic(op, name) for name, (op, _) in _NUMBERS.items()},
    "flatten": _flatten,
    "view": _view,
    "reshape": _view,
    "mean": _reduce(False),
    "sum": _reduce(True),
    "squeeze": _squeeze,
    "prelu": _prelu,
    **dict.fromkeys(("float", "double", "to", "type_as"), _cast),
    "where": lambda b, x, condition, y: _where(b, condition, x, y),
    "masked_fill": _masked_fill,
    "masked_fill_": _masked_fill,
    "size": _size,
    "contiguous": _same,
    "clone": _same,
    "neg": _neg,
    "dim": lambda b, x: len(x.shape) + 1,
}

ATTRIBUTES: dict[str, Rule] = {
    "shape": lambda b, x: _size(b, x),
    "ndim": lambda b, x: len(x.shape) + 1,
    "mT": lambda b, x: rearranged(b, x, lambda t: t.mT, "mT"),
}
