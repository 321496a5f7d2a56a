"""The activations of `torch` that are recognized, and the dual functions of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import value_error
from ._affine import DualAffine
from ._dual import DualActivation
from ._erf import DualErf
from ._exp import DualExp
from ._gelu import DualGELU
from ._quadrature import DualQuadrature
from ._rectifier import DualRectifier
from ._sine import DualCos, DualSin
from ._square import DualSquare

Factory = Callable[[Any], DualActivation]
"""Makes dual functions for a module, a function, or a `functools.partial` with keywords."""


def _relu(_: object = None) -> DualActivation:
    return DualRectifier(1.0, 0.0, "relu")


def _leaky_relu(slope: float = 0.01) -> DualActivation:
    return DualRectifier(1.0, slope, "leaky_relu")


def _abs(_: object = None) -> DualActivation:
    return DualRectifier(1.0, -1.0, "abs")


def _identity(_: object = None) -> DualActivation:
    return DualAffine(1.0, 0.0, "identity")


def _gelu(activation: Any, approximate: str) -> DualActivation:
    if approximate == "none":
        return DualGELU()
    return DualQuadrature(activation, "gelu_tanh")


def _prelu(module: nn.PReLU) -> DualActivation:
    what = f"a PReLU of {module.num_parameters} slopes"
    if module.num_parameters != 1:
        remedy = "Units must be exchangeable in the limit of infinite width: use nn.PReLU(1)."
        raise value_error("activation", "a PReLU of one slope", what, remedy)
    if module.weight.requires_grad:
        remedy = (
            "A kernel of infinite width has no place for a trained slope: freeze it with "
            "module.requires_grad_(False), or use nn.LeakyReLU."
        )
        came = "a PReLU whose slope is trained"
        raise value_error("activation", "an activation that is not trained", came, remedy)
    return DualRectifier(1.0, float(module.weight.detach()), "prelu")


def _rrelu(module: nn.RReLU) -> DualActivation:
    _check_evaluation_mode(module, "draws its slope")
    return DualRectifier(1.0, (module.lower + module.upper) / 2, "rrelu")


def _dropout(module: nn.Module) -> DualActivation:
    _check_evaluation_mode(module, "drops entries")
    return _identity()


def _hardsigmoid(x: Tensor) -> Tensor:
    """Return min(max(x + 3, 0), 6)/6. The derivative of torch's own is rounded to float32."""
    return F.relu6(x + 3) / 6


def _check_evaluation_mode(module: nn.Module, what: str) -> None:
    if module.training:
        came = f"{type(module).__name__} in training mode, which {what} at random"
        remedy = "Call .eval() on it first."
        raise value_error("activation", "deterministic", came, remedy)


def _option(activation: Any, name: str, default: Any) -> Any:
    """Return the value of a keyword that a `functools.partial` binds, or else the default."""
    if isinstance(activation, functools.partial):
        return activation.keywords.get(name, default)
    return default


_SMOOTH_OR_PIECEWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": _hardsigmoid,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
}

NAMES: dict[str, Callable[[], DualActivation]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "abs": _abs,
    "identity": _identity,
    "erf": DualErf,
    "gelu": DualGELU,
    "sin": DualSin,
    "cos": DualCos,
    "exp": DualExp,
    "square": DualSquare,
    **{
        name: functools.lru_cache(functools.partial(DualQuadrature, f, name))
        for name, f in _SMOOTH_OR_PIECEWISE.items()
    },
}
"""Functions that make dual functions, by the names that `dual_activation` takes."""

WITHOUT_FORMULA = frozenset(_SMOOTH_OR_PIECEWISE.values())
"""Functions whose dual functions have no closed form here and are computed by quadrature."""

MODULES: dict[type[nn.Module], Factory] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: lambda module: _leaky_relu(module.negative_slope),
    nn.PReLU: _prelu,
    nn.RReLU: _rrelu,
    nn.GELU: lambda module: _gelu(module, module.approximate),
    nn.Identity: _identity,
    nn.Hardsigmoid: lambda _: NAMES["hardsigmoid"](),
    **dict.fromkeys(
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), _dropout
    ),
}
"""Factories by the exact type of a module. Other modules, such as `nn.Tanh`, are called."""

FUNCTIONS: dict[Any, Factory] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_), _relu
    ),
    **dict.fromkeys(
        (F.leaky_relu, F.leaky_relu_), lambda f: _leaky_relu(_option(f, "negative_slope", 0.01))
    ),
    **dict.fromkeys((abs, torch.abs, torch.absolute, torch.Tensor.abs), _abs),
    **dict.fromkeys((torch.erf, torch.special.erf, torch.Tensor.erf), lambda _: DualErf()),
    F.hardsigmoid: lambda _: NAMES["hardsigmoid"](),
    F.gelu: lambda f: _gelu(f, _option(f, "approximate", "none")),
    **dict.fromkeys((torch.sin, torch.Tensor.sin), lambda _: DualSin()),
    **dict.fromkeys((torch.cos, torch.Tensor.cos), lambda _: DualCos()),
    **dict.fromkeys((torch.exp, torch.Tensor.exp), lambda _: DualExp()),
    **dict.fromkeys((torch.square, torch.Tensor.square), lambda _: DualSquare()),
}
"""Factories by the identity of a function. Functions that are not listed are called."""

_MIXES = "which mixes the entries of a sample"
NOT_ELEMENTWISE: dict[Any, str] = dict.fromkeys(
    (
        *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU),
        *(F.softmax, F.log_softmax, F.softmin, F.glu),
        *(torch.softmax, torch.log_softmax),
    ),
    _MIXES,
)
"""Functions that are not elementwise, although they are often called activations, and why."""
