"""Where transformations of torch.func are tried, and how their failure is told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .._checks import ArgumentError
from ..memory import is_out_of_memory

# What torch raises for an operation without a batching rule or a derivative of the kind that is
# asked for, and what a forward raises when its values are wrapped.
_RAISED = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError)


class CannotTransformError(Exception):
    """torch.func cannot transform the model so; the cause is the error that torch raised."""


@contextlib.contextmanager
def transforming() -> Iterator[None]:
    """Around one transformation of the model, and nothing else.

    Raises:
        CannotTransformError: It failed, but neither for lack of memory nor by a mistake of the
            caller, which are raised as they are.
    """
    try:
        yield
    except ArgumentError:
        raise
    except _RAISED as error:
        if is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        raise CannotTransformError(lines[0] if lines else type(error).__name__) from error
