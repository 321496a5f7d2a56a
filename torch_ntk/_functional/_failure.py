"""What an error that torch raised inside a transformation means for the caller."""

from __future__ import annotations

from .._checks import value_error


def failure(error: Exception, doing: str, remedy: str = "") -> Exception:
    """A `ValueError` that says which known cause stopped `doing`, to be raised from `error`.

    Args:
        error: What torch raised.
        doing: What was attempted, for example "differentiate the outputs".
        remedy: What the caller may do instead, if the cause is none of the known ones.
    """
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    return value_error(
        "model",
        "a function that torch.func can differentiate",
        f"{type(error).__name__} while trying to {doing}: {first}",
        f"{remedy} The error above this one shows where in the model it happened.".strip(),
    )
