"""Evaluate a module so that nothing of the evaluation can be seen afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrize

from ._forward_mode import forward_mode
from ._state import ModuleState
from ._unwrap import is_script


@contextlib.contextmanager
def quiet(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Within it, `model` is a deterministic function that torch.func can differentiate.

    Inside: every module in eval mode, autocast and reduced-precision float32 products off,
    scaled-dot-product attention in its plain form (the fused kernels have no forward-mode
    derivative), `torch.compile` off, grad mode off (torch.func turns on what it needs), and
    normal tensors even if the caller is in `torch.inference_mode`.

    Afterwards, also after an exception, all of this is as before, and so are the random states
    of torch, NumPy and Python and every attribute that a `forward` assigned to its module.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(python_state(model))
        stack.enter_context(_random_state(device))
        stack.enter_context(_full_precision(device))
        stack.enter_context(forward_mode(model))
        stack.enter_context(no_cached_weights())
        stack.enter_context(_no_reentrant_checkpoints())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def python_state(model: nn.Module | None) -> Iterator[None]:
    """Put every module in eval mode, and its attributes back as they were.

    The flags are set one by one: `model.eval(); ...; model.train()` would thaw modules that the
    user had frozen in eval mode, and would call overridden `train` methods. TorchScript keeps
    its attributes in C++ and is refused anyway.
    """
    modules = [] if model is None else [m for m in model.modules() if not is_script(m)]
    saved = [ModuleState(m) for m in modules]
    try:
        for m in modules:
            m.training = False
        yield
    finally:
        for state in saved:
            state.restore()


@contextlib.contextmanager
def no_cached_weights() -> Iterator[None]:
    """Leave `torch.nn.utils.parametrize.cached()`, which the caller may be in.

    Its cache is keyed by module: it would hand out weights computed from the module's own
    parameters instead of those that the evaluation is to use.
    """
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextlib.contextmanager
def _no_reentrant_checkpoints() -> Iterator[None]:
    """Within it, reentrant activation checkpointing raises instead of losing gradients.

    Its backward pass gives parameters their gradients on the side. Where the input of a block
    requires grad by itself, autograd asks for none of them and takes them for zero.
    """
    own = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _Refusing  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = own  # type: ignore[misc]


class _Refusing:
    @staticmethod
    def apply(function: Any, preserve: bool, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing is differentiated: a plain call
            return function(*inputs)
        raise RuntimeError("torch.func refuses saved tensor hooks and activation checkpointing")


@contextlib.contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    devices = [] if device.type in ("cpu", "meta") else [device]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    kind = "cuda" if device.type == "cpu" else device.type
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32, whatever the caller allows for training."""
    operations, levels = _precisions(device)
    if all(s.fp32_precision in ("none", "ieee") for s in operations):
        yield
        return
    saved = []
    try:
        # What is unset reads as what the level above it says. With that out of the way, each
        # gives its own value, and can be put back to it.
        for setting in levels:
            saved.append((setting, str(setting.fp32_precision)))
            setting.fp32_precision = "none"
        for setting in operations:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in saved:
            setting.fp32_precision = value


def _precisions(device: torch.device) -> tuple[list[Any], list[Any]]:
    """Settings of the precision of float32 products on a device, and all levels of them."""
    backends: Any = torch.backends
    if device.type == "cuda":
        operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        return operations, [backends, backends.cudnn, *operations]
    if device.type == "cpu":
        operations = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        # What torch calls the setting of this backend sets that of all.
        return operations, [backends, *operations]
    return [], []
