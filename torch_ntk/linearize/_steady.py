"""Run a network as a pure function that is differentiable once more, inside a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks

from .._checks import value_error
from .._functional._forward_mode import forward_mode
from .._functional._quiet import no_cached_weights


@contextlib.contextmanager
def steady(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, `network` can be expanded, and the expansion be differentiated by θ.

    - Autocast is off: a derivative rounded to half precision is no linearization.
    - `torch.compile` inside of the network is off: it would trace each transformation anew.
    - Grad mode is on and inference mode off, also in `no_grad`: some forward-mode rules need
      it, and so do backward passes. It is the caller's part to detach what is not to be tracked.
    - Activation checkpointing is passed over: it would recompute with θ what was computed with
      θ_0, for silently wrong gradients, and torch.func refuses it.
    - Other saved tensor hooks raise: within those of a checkpoint around it, it would be
      recomputed in the middle of its own backward passes.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(forward_mode(network))
        stack.enter_context(no_cached_weights())
        stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_no_checkpoints())
        stack.enter_context(_no_saved_tensors_hooks())
        yield


@contextlib.contextmanager
def _no_checkpoints() -> Iterator[None]:
    """Within it, `torch.utils.checkpoint.checkpoint` calls its function and no more.

    What it is made of is replaced, because others have imported the function itself.
    """
    module = torch.utils.checkpoint
    own = {name: getattr(module, name) for name in _PLAIN_CALLS if hasattr(module, name)}
    try:
        for name in own:
            setattr(module, name, _PLAIN_CALLS[name])
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


class _PlainCheckpointFunction:
    @staticmethod
    def apply(function: Any, preserve: bool, *inputs: Any) -> Any:
        return function(*inputs)


def _nothing_around(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _plain_call(function: Any, args: Any, kwargs: Any, **options: Any) -> Any:
    return function(*args, **kwargs)


# By their names in torch. Releases that lack the first call the others, with and without
# `use_reentrant`.
_PLAIN_CALLS: dict[str, Any] = {
    "_checkpoint_impl": _plain_call,
    "CheckpointFunction": _PlainCheckpointFunction,
    "_checkpoint_without_reentrant_generator": _nothing_around,
}


@contextlib.contextmanager
def _no_saved_tensors_hooks() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disable_saved_tensors_hooks("no saved tensor hooks here"))
        except RuntimeError as error:
            raise value_error(
                "x",
                "passed outside of saved tensor hooks",
                "a call within torch.utils.checkpoint, save_on_cpu or other such hooks",
                "Call the linearized or expanded model outside of them.",
            ) from error
        yield
