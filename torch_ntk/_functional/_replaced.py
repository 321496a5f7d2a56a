"""What a forward may call that is replaced while it is evaluated: autocast and checkpointing.

Both are global to the process, so that other threads, which may be training, keep the originals.
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
    """Within it, a forward of this thread cannot switch autocast on.

    A kernel is computed in one precision; a context that the forward enters by itself would
    otherwise round to half precision in the middle of it. Autocast must be off around it.
    """
    set_enabled = torch.set_autocast_enabled

    def stays_off(*args: Any) -> None:  # (device, enabled), or the old (enabled) of a GPU
        set_enabled(*args[:-1], False)  # type: ignore[call-overload]

    with _in_this_thread(torch, "set_autocast_enabled", stays_off):
        yield


@contextlib.contextmanager
def checkpoints_passed_over() -> Iterator[None]:
    """Within it, `torch.utils.checkpoint.checkpoint` simply calls its function, in this thread.

    Activation checkpointing saves memory and does not change the value. torch.func refuses it, and
    its recomputation would take place when the parameters are no longer those of the evaluation.
    Replaced is what `checkpoint` itself looks up in each call: users import `checkpoint` by name.
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
    """In place of the reentrant `CheckpointFunction.apply`: what the function returns."""
    return function(*inputs)


def _call_between(*args: Any, **kwargs: Any) -> Iterator[None]:
    """In place of the generator that runs before and after the function."""
    yield


@contextlib.contextmanager
def _in_this_thread(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """`owner.name` is `replacement` for calls of this thread, and itself for those of others."""
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
