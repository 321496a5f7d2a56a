"""`dual_activation`: the dual functions of an activation that a user names or builds."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from .._checks import check_choice, describe, type_error, value_error
from ._dual import DualActivation
from ._known import FUNCTIONS, MODULES, NAMES, NOT_ELEMENTWISE, WITHOUT_FORMULA
from ._probe import half_lines
from ._quadrature import DualQuadrature
from ._rectifier import DualRectifier

ActivationLike: TypeAlias = str | nn.Module | Callable[[Tensor], Tensor] | DualActivation
"""An activation by name, as a module, as a function, or as its dual functions."""

_EXPECTED = "an elementwise activation"
_REMEDY = (
    "Give a name such as 'relu', a module such as torch.nn.ReLU(), an elementwise function of one "
    "tensor, or a DualActivation."
)

_registered: dict[Any, Callable[[Any], DualActivation]] = {}

# Dual functions of activations of torch without a closed form, by `_torch_key`, so that all layers
# and calls share their coefficients.
_shared_duals: dict[Any, DualActivation] = {}
_MOST_SHARED = 16


def dual_activation(activation: ActivationLike) -> DualActivation:
    """Return the dual functions of an activation.

    ReLU, leaky ReLU, PReLU (one frozen slope), RReLU (in evaluation mode), the absolute value,
    erf, GELU, sine, cosine, the exponential, the square and the identity have closed forms. Any
    other elementwise function is called: if its values are a₊ x for positive and a₋ x for negative
    x, the result is a `DualRectifier`, which is exact; otherwise it is a `DualQuadrature`, whose
    method `error` returns a bound of its relative error.

    Args:
        activation: A name (`"relu"`, `"tanh"`, ...), a module, a function of one tensor, or a
            `DualActivation`, which is returned. Modules are recognized by their exact type and
            functions by identity (`torch.relu`, `F.gelu`, also `functools.partial(F.leaky_relu,
            negative_slope=0.2)`).

    Raises:
        TypeError: `activation` is no activation, or a class instead of an instance.
        ValueError: The name is unknown; or the activation mixes entries, is random, has parameters
            that are trained, jumps, or is not finite on [-3, 3].

    Example:
        >>> dual_activation("relu")
        <DualRectifier of relu>
        >>> dual_activation(nn.Tanh())
        <DualQuadrature of Tanh>
    """
    if isinstance(activation, DualActivation):
        return activation
    if isinstance(activation, str):
        return NAMES[check_choice("activation", activation, tuple(NAMES), _REMEDY)]()
    _check_callable(activation)
    key = _table_key(activation)
    if key in NOT_ELEMENTWISE:
        name = getattr(key, "__name__", describe(activation))
        raise value_error("activation", _EXPECTED, f"{name}, {NOT_ELEMENTWISE[key]}", _REMEDY)
    factory = _registered.get(key) or MODULES.get(key) or FUNCTIONS.get(key)
    if key in _registered and isinstance(activation, nn.Module):
        _check_not_trained(activation)  # the factories of this package check this themselves
    if factory is not None:
        made: Any = factory(activation)
        if not isinstance(made, DualActivation):
            what = f"{describe(made)} from the factory registered for {describe(activation)}"
            raise type_error("factory", "a function that makes a DualActivation", what)
        return made
    if isinstance(activation, nn.Module):
        _check_not_trained(activation)
    known = _torch_key(activation)
    if known is None:
        return _dual_from_values(activation)
    shared = _shared_duals.get(known)
    if shared is None:
        shared = _dual_from_values(copy.deepcopy(activation))
        for old in list(_shared_duals)[: max(0, len(_shared_duals) - _MOST_SHARED + 1)]:
            _shared_duals.pop(old, None)
        _shared_duals[known] = shared
    return shared


def register_dual(
    key: type[nn.Module] | Callable[..., Any], factory: Callable[[Any], DualActivation]
) -> None:
    """Have `dual_activation` use `factory` for a module type or a function.

    `analytic_ntk` and the other functions for infinite width then use it, too, for modules of this
    type in a network. They use it for a function if the network's forward calls it by a global
    name or as an attribute of a module; a function that is called in another way is traced into.

    Args:
        key: A class of modules, matched exactly (not its subclasses), or a function, matched by
            identity. An earlier entry is replaced.
        factory: Takes the module, the function, or a `functools.partial` of the function with
            keywords, and returns its dual functions.

    Raises:
        TypeError: `key` is neither a class of modules nor a function, or `factory` is not callable.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> from torch_ntk.activations import DualAffine
        >>> register_dual(Double, lambda module: DualAffine(2.0, name="double"))
        >>> dual_activation(Double())
        <DualAffine of double>
    """
    is_class = isinstance(key, type) and issubclass(key, nn.Module)
    is_function = callable(key) and not isinstance(key, (type, nn.Module))
    if not (is_class or is_function):
        remedy = "For a module, give its class."
        raise type_error("key", "a class of modules or a function", describe(key), remedy)
    if not callable(factory):
        raise type_error("factory", "a function that makes a DualActivation", factory)
    _registered[key] = factory


def is_registered(key: Any) -> bool:
    """Return whether `register_dual` has registered this class of modules or function."""
    return type(key).__hash__ is not None and key in _registered


def registered_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions that `register_dual` has registered, without the classes of modules."""
    return tuple(key for key in _registered if not isinstance(key, type))


def _dual_from_values(activation: Callable[[Tensor], Tensor]) -> DualActivation:
    expansion = DualQuadrature(activation)
    slopes = half_lines(activation)
    return expansion if slopes is None else DualRectifier(*slopes, expansion.name)


def _torch_key(activation: Any) -> Any:
    """Return a key that is equal for equal activations of torch; None for any other activation.

    For a function it is the function, and for a module its class and settings.
    """
    if not isinstance(activation, nn.Module):
        return activation if _table_key(activation) in WITHOUT_FORMULA else None
    own = dict(vars(activation))
    if type(activation).__module__ != nn.Tanh.__module__ or any(
        own[name] for name in own if name[0] == "_" and isinstance(own[name], dict)
    ):
        return None  # it has hooks, parameters, buffers or submodules
    settings = {
        name: own[name] for name in own if name[0] != "_" and name not in ("training", "inplace")
    }
    if not all(isinstance(value, (int, float)) for value in settings.values()):
        return None
    return (type(activation), *sorted(settings.items()))


def _table_key(activation: Any) -> Any:
    """Return the key of an activation in the tables of factories: a type, a function, or None."""
    if isinstance(activation, nn.Module):
        return type(activation)
    if isinstance(activation, functools.partial):
        return None if activation.args else activation.func
    return activation if type(activation).__hash__ is not None else None


def _check_callable(activation: object) -> None:
    if isinstance(activation, type):
        came = f"the class {activation.__name__}"
        raise type_error("activation", _EXPECTED, came, "Give an instance of the class.")
    if not callable(activation):
        raise type_error("activation", _EXPECTED, describe(activation), _REMEDY)


def _check_not_trained(module: nn.Module) -> None:
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    if trained:
        what = f"{describe(module)} with trainable parameters {', '.join(trained)}"
        remedy = (
            "A kernel of infinite width has no place for them; freeze them with "
            "module.requires_grad_(False) if it is an activation."
        )
        raise value_error(
            "activation", "an elementwise activation that is not trained", what, remedy
        )
