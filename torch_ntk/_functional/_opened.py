"""Functions of torch that are written in Python, evaluated so that their inner calls are visible.

A `TorchFunctionMode` sees attention as one call, which hides the linear operations in it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch.nn import functional as F


def opened(func: Any) -> Callable[..., Any] | None:
    """A version of `func` of which active `TorchFunctionMode`s see the inner calls, or None.

    It runs torch's own code. It only does not dispatch the whole call to the modes first.
    """
    return _OPENED.get(func)


def _without_dispatch(func: FunctionType) -> Callable[..., Any]:
    """A copy of `func` that does not dispatch: `has_torch_function` is false in it."""
    own = {**func.__globals__, "has_torch_function": lambda _: False}
    found = FunctionType(func.__code__, own, func.__name__, func.__defaults__, func.__closure__)
    found.__kwdefaults__ = func.__kwdefaults__
    return found


_OPENED: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _without_dispatch(F.multi_head_attention_forward)  # type: ignore[arg-type]
}
