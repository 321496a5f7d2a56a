"""Selection of the parameters by which a kernel differentiates."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .._checks import describe, type_error, value_error
from .._types import ParameterSelection
from ._unwrap import plain_name


def select_parameters(model: nn.Module, params: ParameterSelection) -> list[str]:
    """The names in `model.named_parameters()` of the parameters that `params` selects.

    None selects every parameter that requires grad. Tied parameters appear once, under their first
    name; a list may use any of their names. A pattern of `fnmatch` such as `"layers.1.*"` selects
    every name that it matches.
    """
    named: dict[str, Tensor] = dict(model.named_parameters())
    if params is None:
        chosen = [n for n, p in named.items() if p.requires_grad]
        if not chosen:
            raise value_error(
                "model",
                "a module with at least one parameter that requires grad",
                f"{len(named)} parameters, none of which does",
                "Unfreeze some, or name the ones to differentiate by with params=[...].",
            )
    elif isinstance(params, Mapping):
        raise type_error(
            "params",
            "names or a predicate when `model` is a module",
            "a mapping",
            "A dictionary of tensors goes with a function f(params, x); for a module write "
            "lambda p, x: torch.func.functional_call(model, p, (x,)).",
        )
    elif callable(params):
        _check_predicate(params, next(iter(named.items()), None))
        chosen = [n for n, p in named.items() if params(plain_name(n), p)]
        if not chosen:
            raise value_error(
                "params",
                "a predicate that selects at least one parameter",
                f"none of {len(named)} selected",
                f"The names are {_listed(list(named))}.",
            )
    else:
        chosen = _by_names(model, named, params)
    _check_floating(named, chosen)
    return chosen


def _check_predicate(predicate: Callable[..., object], one: tuple[str, Tensor] | None) -> None:
    """Raise an error if the predicate cannot be called with a name and a tensor, such as `one`."""
    try:
        signature = inspect.signature(predicate)
    except ValueError:  # some built-in functions have none
        return
    try:
        signature.bind(*(one or ("name", None)))
    except TypeError as error:
        raise type_error(
            "params",
            "a predicate of two arguments, (name, tensor) -> bool",
            f"one with the signature {signature}",
            "Write lambda name, tensor: ....",
        ) from error


def _by_names(model: nn.Module, named: dict[str, Tensor], params: object) -> list[str]:
    """The names that a list of names and patterns selects among the parameters `named`."""
    if isinstance(params, (str, bytes)) or not hasattr(params, "__iter__"):
        raise type_error("params", "None, a list of names or a predicate", describe(params), "")
    first = {id(p): n for n, p in named.items()}
    every = {plain_name(n): first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
    wanted = list(params)
    if any(isinstance(n, Tensor) for n in wanted):
        raise type_error(
            "params",
            "names of parameters",
            f"a list with {sum(isinstance(n, Tensor) for n in wanted)} tensors",
            "Write params=[name for name, _ in model.named_parameters()].",
        )
    matched = {n: _matching(n, list(every)) for n in wanted if isinstance(n, str)}
    unknown = [str(n) for n in wanted if not matched.get(n)]
    if unknown:
        near = [m for n in unknown for m in difflib.get_close_matches(n, every, cutoff=0.5)]
        raise value_error(
            "params",
            "names of parameters of the model, or patterns that match some",
            _listed(unknown),
            (f"Near to it are {_listed(list(dict.fromkeys(near)))}. " if near else "")
            + f"The names are {_listed(list(every))}.",
        )
    names = [every[plain_name(n)] for n in wanted if plain_name(n) in every]
    # A parameter that several patterns match is selected once.
    chosen = list(dict.fromkeys(every[m] for n in wanted for m in matched[n]))
    if len(set(names)) != len(names):
        raise value_error(
            "params",
            "names that each stand for another parameter",
            f"{_listed(wanted)}, some of which are the same (tied) parameter",
            "Each parameter counts once: remove the repeated names.",
        )
    if not chosen:
        raise value_error("params", "at least one name", "an empty list", "")
    return chosen


def _matching(wanted: str, names: list[str]) -> list[str]:
    """The names that are equal to `wanted`, or match it as a pattern with `*`, `?` or `[…]`."""
    name = plain_name(wanted)
    return [name] if name in names else [n for n in names if fnmatchcase(n, name)]


def _check_floating(named: dict[str, Tensor], chosen: list[str]) -> None:
    """Raise an error if a selected parameter has an integer or boolean dtype."""
    for name in chosen:
        if not (named[name].is_floating_point() or named[name].is_complex()):
            raise type_error(
                "params", "floating-point parameters", f"{name!r}: {describe(named[name])}"
            )


def _listed(names: list[str]) -> str:
    """A text with at most eight of the names."""
    shown = ", ".join(repr(plain_name(n)) for n in names[:8])
    return shown if len(names) <= 8 else f"{shown}, … ({len(names)} in all)"
