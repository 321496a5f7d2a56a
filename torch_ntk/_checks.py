"""Checks of arguments, and the form in which this package reports mistakes of the caller.

Every message names the argument, what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
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
    """The text "`name` must be EXPECTED; got GOT. REMEDY".

    Args:
        name: The argument's name as the caller wrote it.
        expected: What it must be, in words that follow "must be".
        got: The value that was passed. A string is used verbatim, anything else is described.
        remedy: A sentence that says what to do.
    """
    came = got if isinstance(got, str) else describe(got)
    text = f"`{name}` must be {expected}; got {came}."
    return f"{text} {remedy}" if remedy else text


class ArgumentError(Exception):
    """A mistake of the caller, reported in the form of `message`.

    Code that guards torch's own transformations catches what these raise (`ValueError`,
    `RuntimeError`, ...) and lets an `ArgumentError` through.
    """


class ArgumentValueError(ArgumentError, ValueError):
    """An argument has a wrong value."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is of a wrong type."""


class UndefinedError(ArgumentValueError):
    """A quantity that was asked for is not defined here; the message says why."""


def value_error(name: str, expected: str, got: object, remedy: str = "") -> ArgumentValueError:
    """An error to be raised for a wrong value; the arguments are those of `message`."""
    return ArgumentValueError(message(name, expected, got, remedy))


def type_error(name: str, expected: str, got: object, remedy: str = "") -> ArgumentTypeError:
    """An error to be raised for a wrong type; the arguments are those of `message`."""
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
    """Return `value` if it is True or False, else raise `TypeError`."""
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


def check_tensor(name: str, value: Any) -> Tensor:
    """Return `value` if it is a strided, materialized tensor, else raise `TypeError`."""
    if not isinstance(value, Tensor):
        remedy = "Convert it with torch.as_tensor(...)."
        raise type_error(name, "a torch.Tensor", describe(value), remedy)
    if value.is_nested:
        remedy = "Pad it with .to_padded_tensor(0.0), and pass the lengths or a mask beside it."
        raise type_error(name, "a dense tensor", "a nested tensor", remedy)
    if value.layout != torch.strided:
        raise type_error(
            name, "a dense tensor", f"layout {value.layout}", "Call .to_dense() first."
        )
    if value.device.type == "meta":
        raise type_error(name, "a tensor with data", "a tensor on the meta device")
    return value


def has_finite_sum(value: Tensor) -> bool:
    """Whether the sum of the entries is finite, which implies that every entry is.

    This takes a tenth of the time of testing every entry. A sum that is not finite proves nothing,
    because finite entries may overflow: then every entry must be tested.
    """
    return value.is_floating_point() and bool(value.detach().sum().isfinite())


def have_finite_sums(values: Iterable[Tensor]) -> bool:
    """Whether `has_finite_sum` holds for all tensors; reads only one number from each device."""
    sums: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for value in values:
        if not value.is_floating_point():
            return False
        sums.setdefault((value.device, value.dtype), []).append(value.detach().sum())
    return all(bool(torch.stack(group).isfinite().all()) for group in sums.values())


def check_finite(name: str, value: Tensor, remedy: str = "") -> Tensor:
    """Return `value` if none of its entries is NaN or infinite, else raise `ValueError`.

    The message counts the NaN and the infinite entries and gives the position of the first one.
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


def listed(names: Sequence[object], most: int = 4) -> str:
    """The names for a message, of which at most `most` are written out; "none" without any."""
    shown = ", ".join(repr(name) for name in names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# Files of this package, and of torch, whose decorators stand between it and the caller.
_NOT_THE_CALLER = tuple(
    f"{folder}{os.sep}" for folder in (Path(__file__).parent, Path(torch.__file__).parent)
)


def frames_to_caller() -> int:
    """The `stacklevel` with which a warning points at the first line outside of this package.

    It is right for `warnings.warn` in the function that calls this one.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        frame, level = frame.f_back, level + 1
    return level
