"""Elementwise functions: activations, arithmetic with numbers, and functions made of both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...activations import dual_activation
from ..operations import Dropout
from ._builder import Builder
from ._products import matched, product, with_known
from ._sums import add, add_known, sum_of_known
from ._values import RANDOM, Data, Elementwise, Features, Joined, Value

# Elementwise functions of one tensor, as functions and as methods. Their other arguments may be
# numbers, or functions of the same value.
FUNCTIONS: tuple[Callable[..., Any], ...] = (
    torch.relu, F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish,
    F.softplus, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink, F.hardtanh, F.hardswish,
    F.hardsigmoid, F.logsigmoid, F.threshold, torch.threshold, F.sigmoid, F.tanh, torch.sigmoid,
    torch.tanh, torch.abs, torch.erf, torch.erfc, torch.exp, torch.expm1, torch.sin, torch.cos,
    torch.sinh, torch.cosh, torch.asinh, torch.atan, torch.arctan, torch.sinc, torch.sign,
    torch.square, torch.pow, torch.clamp, torch.clamp_min, torch.clamp_max, torch.special.erf,
    torch.special.expit, torch.logaddexp, torch.nn.functional.rrelu, operator.pow, operator.abs,
    torch.selu, torch.celu, torch.heaviside, torch.log1p, torch.sqrt, torch.log, torch.reciprocal,
    torch.exp2, torch.arcsinh, torch.absolute, torch.clip, torch.where, torch.maximum,
    torch.minimum, torch.fmax, torch.fmin, torch.max, torch.min, torch.hypot, torch.atan2,
    torch.addcmul, torch.addcdiv, torch.lerp, torch.special.erfc, torch.special.expm1,
    torch.special.ndtr, torch.special.log_ndtr, torch.special.exp2, torch.special.i0,
    torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne, torch.logical_and, torch.logical_or,
    torch.logical_not, operator.gt, operator.ge, operator.lt, operator.le, operator.eq,
    operator.ne, operator.and_, operator.or_, operator.invert, torch.float_power,
    torch.zeros_like, torch.ones_like, torch.full_like,
)  # fmt: skip
METHODS: tuple[str, ...] = (
    "relu", "sigmoid", "tanh", "abs", "erf", "erfc", "exp", "expm1", "sin", "cos", "sinh", "cosh",
    "asinh", "atan", "arctan", "sinc", "sign", "square", "pow", "clamp", "clamp_min", "clamp_max",
    "relu_", "sigmoid_", "tanh_", "abs_", "exp_", "log1p", "sqrt", "log", "reciprocal", "exp2",
    "where", "maximum", "minimum", "fmax", "fmin", "max", "min", "addcmul", "addcdiv", "lerp",
    "gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not", "clip",
    "absolute", "float_power", "hypot", "atan2", "square_", "clamp_",
)  # fmt: skip


def activation(b: Builder, x: Any, function: Callable[[Tensor], Tensor], lookup: Any) -> Features:
    """Return an elementwise function of features.

    Args:
        b: The builder that collects steps.
        x: The features.
        function: The function.
        lookup: The argument with which `dual_activation` finds its dual functions; None if the
            function itself is looked up.
    """
    if isinstance(x, Joined):
        return Joined(tuple(activation(b, p, function, lookup) for p in x.parts))  # type: ignore[misc]
    if isinstance(x, Elementwise):
        inner = x
        return Elementwise(x.base, lambda t: function(inner(t)), flat=x.flat, node=b.node)
    v = b.value(x)
    if v.unflattened is not None:
        inside = activation(b, v.unflattened, function, lookup)
        assert isinstance(inside, Elementwise)
        inside.flat = True
        return inside
    if v.undropped is not None:
        return _after_dropout(b, *v.undropped, function, lookup)
    if not v.gaussian:
        raise b.refusal(
            "an elementwise function",
            "Its input is not Gaussian in the limit: it must be the output of an NTK layer that "
            "mixes many channels, or a sum, average or normalization of such outputs.",
            "Put an NTK layer before it; after a depthwise one, a convolution of kernel size 1.",
        )
    return Elementwise(_without_gain(b, v), function, lookup, node=b.node)


def _after_dropout(
    b: Builder,
    v: Value,
    keep: float,
    one_mask: bool,
    function: Callable[[Tensor], Tensor],
    lookup: Any,
) -> Value:
    """Return `φ(m x / p)` with a mask m, for φ(0) = 0.

    This is `m/p · χ(x)` with `χ(x) = p φ(x/p)`, a dropout after the activation χ.
    """
    some = torch.linspace(-3, 3, 13, dtype=torch.float64)
    if bool(function(torch.zeros_like(some)).any()):
        raise b.refusal(
            "an elementwise function that is not 0 at 0 after dropout",
            "Dropped entries become a constant, so that features do not have zero mean.",
            "Put the dropout after the function.",
        )
    scaled: Callable[[Tensor], Tensor] = lambda t: keep * function(t / keep)  # noqa: E731
    if torch.allclose(scaled(some), function(some), rtol=1e-12, atol=0):  # as with ReLU
        scaled = function
    features = activation(b, v, scaled, lookup if scaled is function else None)
    return b.step(Dropout(keep, one_mask), (b.value(features),))


def _without_gain(b: Builder, v: Value) -> Value:
    """Return the value to which a function is applied: `v` without the derivatives by a gain.

    The builder adds these derivatives to the kernel of the function's result.
    """
    if v.gained and v.ungained is None:
        raise b.refusal(
            "an elementwise function after a trained gain of a normalization with another "
            "operation in between",
            "The gain's contribution to the tangent kernel, the product of the normalized features "
            "channel by channel, is not independent of the function's derivative there.",
            "Put the function directly after the normalization, or freeze the gain, "
            "norm.weight.requires_grad_(False).",
        )
    return v if v.ungained is None else v.ungained


def resolve(named: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """Return the dual functions of an activation that a caller passes, and the activation.

    Raises:
        TypeError, ValueError: It is no elementwise activation.
    """
    dual = dual_activation(named)
    return dual, named if callable(named) else torch.nn.Identity()


def as_function(x: Any) -> Elementwise | None:
    """Return features as a function of one Gaussian value; None if they are not one.

    If the value is a multiple of another one, they are returned as a function of the latter.
    """
    if isinstance(x, Elementwise):
        base, factor = x.base.root
        inner = x
    elif isinstance(x, Value):
        v = x if x.gaussian or x.unflattened is None else x.unflattened
        if not v.gaussian:
            return None
        base, factor = v.root
        inner = Elementwise(v, lambda t: t, torch.nn.Identity(), flat=v is not x)
    else:
        return None
    base = base if base.ungained is None else base.ungained
    if factor == 1:
        return replace(inner, base=base, made=None, unscaled=None)
    return Elementwise(base, lambda t: inner(factor * t), flat=inner.flat)


def pointwise(
    b: Builder, function: Callable[..., Tensor], arguments: Sequence[Any], what: str
) -> Elementwise:
    """Return an elementwise function of several arguments that are all functions of one value.

    Args:
        b: The builder that collects steps.
        function: The function.
        arguments: The features and constants that are its arguments.
        what: The name of the function, for messages.
    """
    found = [as_function(a) if is_random(a) else None for a in arguments]
    random = [f for f, a in zip(found, arguments, strict=True) if is_random(a)]
    first = random[0]
    if first is None or not all(
        f is not None and f.base.same(first.base) and f.flat == first.flat for f in random
    ):
        raise b.refusal(
            f"{what}, an elementwise function of two features",
            "Only functions of one Gaussian value, the output of an NTK layer, are supported.",
            "Make both functions of the same layer's output, or use sums and products.",
        )
    constants = [None if is_random(a) else constant(b, a, what) for a in arguments]

    def composed(t: Tensor) -> Tensor:
        pairs = zip(found, constants, strict=True)
        return function(*(c if f is None else f(t) for f, c in pairs))

    return Elementwise(_without_gain(b, first.base), composed, flat=first.flat, node=b.node)


def is_random(x: Any) -> bool:
    """Whether the argument is random features."""
    return isinstance(x, RANDOM)


def constant(b: Builder, x: Any, what: str) -> Any:
    """Return an argument that is the same for all entries as a number; raise an error otherwise."""
    if isinstance(x, (list, tuple)):
        return type(x)(constant(b, a, what) for a in x)
    number = _number(x)
    if isinstance(x, Data) and number is None and isinstance(x.first, Tensor):
        if x.first.numel() == 1 and x.first is x.second:
            return x.first.reshape(())
        raise b.refusal(
            f"{what} with a known tensor of shape {tuple(x.first.shape)}",
            "An activation must be the same function for all entries.",
            "Pass a number.",
        )
    return x.first if isinstance(x, Data) else x


def combine(
    b: Builder, x: Any, y: Any, operation: Callable[[Any, Any], Any], name: str
) -> Features:
    """Return `x + y`, `x - y`, `x * y` or `x / y`, at least one of which is random features."""
    number = _number(y) if _number(y) is not None else _number(x)
    if number is not None:
        return _with_number(b, x, y, operation, name)
    if isinstance(x, Joined) or isinstance(y, Joined):
        return _joined(b, x, y, operation, name)
    if isinstance(x, Value) and isinstance(y, Value) and name in ("add", "sub"):
        (one, first), (two, second) = x.root, y.root
        if one.same(two):  # the sum is a multiple of the same value
            return b.scale(one, first + second if name == "add" else first - second)
    if is_random(x) and is_random(y):
        f, g = as_function(x), as_function(y)
        if f is not None and g is not None and f.base.same(g.base) and f.flat == g.flat:
            return pointwise(b, operation, (x, y), name)
    if name in ("add", "sub"):
        found: Value = added(b, x, y if name == "add" else _negative(b, y))
        return found
    if isinstance(x, Data) or isinstance(y, Data):
        return with_known(b, x, y, operation, name)
    if name == "mul":
        return product(b, x, y)
    raise b.refusal(
        "a quotient of features",
        "Its expectation may not exist.",
        "Divide by a number, or use a function of one value.",
    )


def added(b: Builder, x: Any, y: Any) -> Any:
    """Return `x + y`, of which one or both may be known."""
    if isinstance(x, Data):
        if isinstance(y, Data):
            return sum_of_known(x, y)
        x, y = y, x
    v = b.value(x, "a sum")
    known = _for_samples(b, y, v.shape)
    v, other = matched(b, v, b.value(known, "a sum", v.axis))
    return add_known(b, v, known) if isinstance(known, Data) else add(b, v, other)


def _for_samples(b: Builder, x: Any, shape: tuple[int, ...]) -> Any:
    """Return a known term of a sum with all the axes of samples of `shape`."""
    if not isinstance(x, Data) or not x.is_tensor:
        return x

    def spread(t: Tensor) -> Tensor:
        t = t.reshape(*[1] * (1 + len(shape) - t.ndim), *t.shape).to(b.dtype)
        try:
            whole = torch.broadcast_shapes(t.shape[1:], shape)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return t  # the sum refuses its shape
        return t.expand(len(t), *whole)

    return x.map(spread)


def _negative(b: Builder, y: Any) -> Any:
    return y.map(operator.neg) if isinstance(y, Data) else b.scale(y, -1.0)


def _joined(
    b: Builder, x: Any, y: Any, operation: Callable[[Any, Any], Any], name: str
) -> Features:
    """Combine concatenated features part by part, where the parts correspond.

    They also correspond to a known tensor that is the same for all channels.
    """
    if isinstance(x, Joined) and isinstance(y, Joined):
        if [(p.shape, p.axis) for p in x.parts] == [(p.shape, p.axis) for p in y.parts]:
            pairs = zip(x.parts, y.parts, strict=True)
            return Joined(tuple(combine(b, p, q, operation, name) for p, q in pairs))  # type: ignore[misc]
    elif isinstance(y, Data) and name in ("mul", "div"):
        return Joined(tuple(combine(b, p, y, operation, name) for p in x.parts))  # type: ignore[misc]
    elif isinstance(x, Data) and name == "mul":
        return Joined(tuple(combine(b, x, p, operation, name) for p in y.parts))  # type: ignore[misc]
    one, two = (b.value(t) if isinstance(t, Joined) else t for t in (x, y))
    return combine(b, one, two, operation, name)


def _number(x: Any) -> float | None:
    if isinstance(x, Data):
        x = x.first if x.first is x.second or (not x.is_tensor and x.first == x.second) else None
        x = x.item() if isinstance(x, Tensor) and x.ndim == 0 else x
    return float(x) if isinstance(x, (bool, int, float)) else None


def _with_number(
    b: Builder, x: Any, y: Any, operation: Callable[[Any, Any], Any], name: str
) -> Features:
    c = _number(y)
    if c is not None:
        if name == "mul":
            return b.scale(x, c)
        if name == "div" and c != 0:
            return b.scale(x, 1 / c)
        if name in ("add", "sub") and c == 0:
            return x  # type: ignore[no-any-return]
        return activation(b, x, lambda t: operation(t, c), None)
    c = _number(x)
    if name == "mul":
        assert c is not None
        return b.scale(y, c)
    return activation(b, y, lambda t: operation(c, t), None)
