"""Run a network as a pure function that is differentiable once more, inside a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks

from .._checks import value_error
from .._functional._forward_mode import forward_mode
from .._functional._quiet import no_cached_weights, one_at_a_time
from .._functional._replaced import autocast_off_inside, checkpoints_passed_over


@contextlib.contextmanager
def steady(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, `network` can be expanded, and the expansion be differentiated by θ.

    - Autocast is off: a derivative rounded to half precision is no linearization.
    - `torch.compile` inside of the network is off: it would trace each transformation anew.
    - Grad mode is on and inference mode off, also in `no_grad`: some forward-mode rules need
      it, and so do backward passes. It is the caller's part to detach what is not to be tracked.
    - Activation checkpointing is passed over. Other saved tensor hooks raise: they would compute
      with θ what belongs to θ_0, for silently wrong gradients.
    - Autocast inside of the forward changes nothing.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_at_a_time)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(forward_mode(network))
        stack.enter_context(no_cached_weights())
        stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(checkpoints_passed_over())
        stack.enter_context(autocast_off_inside())
        stack.enter_context(_no_saved_tensors_hooks())
        yield


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
