"""Replacements of autocast and activation checkpointing while a forward is evaluated.

These functions of torch are global to the process. The replacements are used in the current thread
only, since other threads may be training.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint


@contextlib.contextmanager
def autocast_off_inside() -> Iterator[None]:
    """A context in which a forward of this thread cannot enable autocast.

    A kernel is computed in one precision, but a forward that enters an autocast context would round
    intermediate results to half precision. The caller must have switched autocast off.
    """
    set_enabled = torch.set_autocast_enabled

    # The arguments are (device, enabled), or in the older form, for a GPU, (enabled).
    def stays_off(*args: Any) -> None:
        set_enabled(*args[:-1], False)  # type: ignore[call-overload]

    with _in_this_thread(torch, "set_autocast_enabled", stays_off):
        yield


@contextlib.contextmanager
def checkpoints_passed_over() -> Iterator[None]:
    """A context in which `torch.utils.checkpoint.checkpoint` only calls its function.

    Activation checkpointing saves memory and does not change values. torch.func does not support
    it, and the recomputation would happen when the parameters of the evaluation are no longer set.
    `checkpoint` itself cannot be replaced, since users import it by name; therefore the functions
    are replaced that it looks up in each call.
    """
    module = torch.utils.checkpoint
    names = (
        "_checkpoint_without_reentrant_generator_impl",
        "_checkpoint_without_reentrant_generator",
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_in_this_thread(module.CheckpointFunction, "apply", _call))
        for name in names:
            if hasattr(module, name):
                stack.enter_context(_in_this_thread(module, name, _call_between))
        yield


def _call(function: Any, preserve: bool, *inputs: Any) -> Any:
    """The replacement of `CheckpointFunction.apply`, which returns what the function returns."""
    return function(*inputs)


def _call_between(*args: Any, **kwargs: Any) -> Iterator[None]:
    """The replacement of the generator that torch runs before and after the function."""
    yield


@contextlib.contextmanager
def _in_this_thread(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """A context in which calls of `owner.name` from this thread call `replacement` instead."""
    original, is_own = getattr(owner, name), name in vars(owner)
    thread = threading.get_ident()

    def chosen(*args: Any, **kwargs: Any) -> Any:
        here = threading.get_ident() == thread
        return (replacement if here else original)(*args, **kwargs)

    setattr(owner, name, chosen)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, original)
        else:  # it is inherited
            delattr(owner, name)
