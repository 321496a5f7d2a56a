"""The context in which a network is evaluated as a pure function, inside of a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks

from .._checks import value_error
from .._functional import settings


@contextlib.contextmanager
def steady(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, `network` can be expanded, and the expansion be differentiated by θ.

    The settings of the process are those of every evaluation, except that grad mode is on, even
    within `no_grad`, because backward passes need it. The caller must detach results that are not
    to be tracked. Saved tensor hooks are refused: they would recompute with θ what belongs to θ_0,
    and gradients would be silently wrong.
    """
    with settings(network, device), torch.enable_grad(), contextlib.ExitStack() as stack:
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
