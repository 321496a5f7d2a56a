"""What an error that torch raised inside a transformation means for the caller."""

from __future__ import annotations

import traceback

from .._checks import value_error

# What a forward that ran untransformed may raise inside torch.func.
CANNOT_TRANSFORM = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)


def is_checkpointing(error: BaseException) -> bool:
    """Whether activation checkpointing made torch.func refuse the model."""
    frames = traceback.extract_tb(error.__traceback__)
    in_checkpoint = any(
        f.filename.replace("\\", "/").endswith("torch/utils/checkpoint.py") for f in frames
    )
    return "saved tensor hooks" in str(error) or in_checkpoint


def failure(error: Exception, doing: str, remedy: str = "") -> Exception:
    """A `ValueError` that says which known cause stopped `doing`, to be raised from `error`.

    Args:
        error: What torch raised.
        doing: What was attempted, for example "differentiate the outputs".
        remedy: What the caller may do instead, if the cause is none of the known ones.
    """
    if is_checkpointing(error):
        return value_error(
            "model",
            "free of activation checkpointing",
            "a forward that calls torch.utils.checkpoint, which torch.func refuses and "
            "which recomputes with other parameters than those asked for",
            "Switch checkpointing off while the kernel is computed.",
        )
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    return value_error(
        "model",
        "a function that torch.func can differentiate",
        f"{type(error).__name__} while trying to {doing}: {first}",
        f"{remedy} The error above this one shows where in the model it happened.".strip(),
    )
