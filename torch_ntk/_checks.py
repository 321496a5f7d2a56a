"""Checks of arguments, and the one form in which this package reports a caller's mistake.

Every message names the argument, what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def describe(value: object) -> str:
    """A short description of a value for an error message: its kind, shape and dtype."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, (str, int, float, bool, complex)) or value is None:
        return repr(value)
    if isinstance(value, (list, tuple, dict, set)):
        return f"a {type(value).__name__} of length {len(value)}"
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def message(name: str, expected: str, got: object, remedy: str = "") -> str:
    """`name` must be ...; got .... What to do.

    Args:
        name: The argument's name as the caller wrote it.
        expected: What it must be, in words that follow "must be".
        got: What came; a string is taken as it stands, anything else is described.
        remedy: A sentence that says what to do.
    """
    came = got if isinstance(got, str) else describe(got)
    text = f"`{name}` must be {expected}; got {came}."
    return f"{text} {remedy}" if remedy else text


class ArgumentError(Exception):
    """A mistake of the caller, told in the form of `message`.

    Code that guards torch's own transformations catches what these raise (`ValueError`,
    `RuntimeError`, ...) and lets an `ArgumentError` through.
    """


class ArgumentValueError(ArgumentError, ValueError):
    """An argument has a wrong value."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is of a wrong type."""


class UndefinedError(ArgumentValueError):
    """A number that was asked for does not exist here; the message says why."""


def value_error(name: str, expected: str, got: object, remedy: str = "") -> ArgumentValueError:
    """The error for a wrong value, to be raised; the arguments are those of `message`."""
    return ArgumentValueError(message(name, expected, got, remedy))


def type_error(name: str, expected: str, got: object, remedy: str = "") -> ArgumentTypeError:
    """The error for a wrong type, to be raised; the arguments are those of `message`."""
    return ArgumentTypeError(message(name, expected, got, remedy))


def check_choice(name: str, value: object, choices: Sequence[str], remedy: str = "") -> str:
    """Return `value` if it is one of `choices`, else raise `ValueError`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise value_error(name, f"one of {listed}", describe(value), remedy)
    return value


def check_positive_int(name: str, value: object, remedy: str = "") -> int:
    """Return `value` if it is an integer of at least 1.

    Raises:
        TypeError: It is not an integer (a bool is not one here).
        ValueError: It is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise type_error(name, "a positive integer", describe(value), remedy)
    if value < 1:
        raise value_error(name, "a positive integer", describe(value), remedy)
    return value


def check_bool(name: str, value: object, remedy: str = "") -> bool:
    """Return `value` if it is True or False, else raise `TypeError`; "False" is not False."""
    if not isinstance(value, bool):
        raise type_error(name, "True or False", describe(value), remedy)
    return value


def check_finite_number(
    name: str, value: object, *, minimum: float | None = None, remedy: str = ""
) -> float:
    """Return `value` as a float if it is a finite real number of at least `minimum`."""
    expected = "a finite number" if minimum is None else f"a finite number, at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise type_error(name, expected, describe(value), remedy)
    if not math.isfinite(value) or (minimum is not None and value < minimum):
        raise value_error(name, expected, describe(value), remedy)
    return float(value)


def check_tensor(name: str, value: Any, remedy: str = "") -> Tensor:
    """Return `value` if it is a strided, materialized tensor, else raise `TypeError`."""
    if not isinstance(value, Tensor):
        hint = remedy or "Convert it with torch.as_tensor(...)."
        raise type_error(name, "a torch.Tensor", describe(value), hint)
    if value.layout != torch.strided:
        raise type_error(
            name, "a dense tensor", f"layout {value.layout}", "Call .to_dense() first."
        )
    if value.device.type == "meta":
        raise type_error(name, "a tensor with data", "a tensor on the meta device", remedy)
    return value


def has_finite_sum(value: Tensor) -> bool:
    """Whether the sum of the entries is finite, which it can only be if each of them is.

    It takes a tenth of the time that a test of every entry does; if it is not, only that tells.
    """
    return value.is_floating_point() and bool(value.detach().sum().isfinite())


def have_finite_sums(values: Iterable[Tensor]) -> bool:
    """Whether `has_finite_sum` holds for all of them, with one number read from each device."""
    sums: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for value in values:
        if not value.is_floating_point():
            return False
        sums.setdefault((value.device, value.dtype), []).append(value.detach().sum())
    return all(bool(torch.stack(group).isfinite().all()) for group in sums.values())


def check_finite(name: str, value: Tensor, remedy: str = "") -> Tensor:
    """Return `value` if none of its entries is NaN or infinite, else raise `ValueError`.

    The message counts the NaN and the infinite entries and gives the first position, which is
    what one needs to find where they come from.
    """
    if has_finite_sum(value):
        return value
    finite = torch.isfinite(value)
    if bool(finite.all()):
        return value
    nans = int(torch.isnan(value).sum())
    infinities = int((~finite).sum()) - nans
    first = tuple(int(i) for i in (~finite).nonzero()[0])
    raise value_error(
        name,
        "finite",
        f"{nans} NaN and {infinities} infinite of {value.numel()} entries "
        f"(the first at index {first})",
        remedy,
    )
