"""Functions of torch that are written in Python, with the calls that they are made of in sight.

Attention reaches a mode of torch as one call, which hides the linear operations of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch.nn import functional as F


def opened(func: Any) -> Callable[..., Any] | None:
    """The function whose calls the modes that are active see one by one; None if it is no such.

    It is torch's own, which only does not hand itself over to those modes first.
    """
    return _OPENED.get(func)


def _not_handed_over(func: FunctionType) -> Callable[..., Any]:
    own = {**func.__globals__, "has_torch_function": lambda _: False}
    found = FunctionType(func.__code__, own, func.__name__, func.__defaults__, func.__closure__)
    found.__kwdefaults__ = func.__kwdefaults__
    return found


_OPENED: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _not_handed_over(F.multi_head_attention_forward)  # type: ignore[arg-type]
}
