"""Translation of errors that torch raises inside a transformation into errors for the caller."""

from __future__ import annotations

from .._checks import value_error


def failure(error: Exception, doing: str, remedy: str = "") -> Exception:
    """A `ValueError` that says what was attempted, to be raised from the error of torch."""
    return value_error(
        "model",
        "a function that torch.func can differentiate",
        f"{type(error).__name__} while trying to {doing}: {first_line(error)}",
        f"{remedy} The error above this one shows where in the model it happened.".strip(),
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "no message")
