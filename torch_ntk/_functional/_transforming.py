"""A context for attempts to transform a model with torch.func."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .._checks import ArgumentError
from ..memory import is_out_of_memory
from ._failure import first_line

# The errors that torch raises for an operation without a batching rule or without the requested
# kind of derivative, and those of a forward that does not work with wrapped tensors.
_RAISED = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError)


class CannotTransformError(Exception):
    """torch.func cannot transform the model in this way. The cause is the error that was raised."""


@contextlib.contextmanager
def transforming() -> Iterator[None]:
    """A context for one transformation of the model, which should contain nothing else.

    A failure raises `CannotTransformError`, except errors about memory and about arguments of the
    caller, which are raised unchanged.
    """
    try:
        yield
    except ArgumentError:
        raise
    except _RAISED as error:
        if is_out_of_memory(error):
            raise
        raise CannotTransformError(first_line(error)) from error
