"""Evaluate a module so that nothing of the evaluation can be seen afterwards."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# What torch.func says about its own speed; it tells the caller nothing that they can act on.
_OWN_WARNINGS = (
    "There is a performance drop because we have not yet implemented the batching rule",
    "RNN module weights are not part of single contiguous chunk of memory",
)


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
        stack.enter_context(_python_state(model))
        stack.enter_context(_random_state(device))
        stack.enter_context(_backend_flags(model, device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_without_own_warnings())
        yield


@contextlib.contextmanager
def _python_state(model: nn.Module | None) -> Iterator[None]:
    """Put every module in eval mode, and its attributes back as they were.

    The flags are set one by one: `model.eval(); ...; model.train()` would thaw modules that the
    user had frozen in eval mode, and would call overridden `train` methods. Attributes are
    restored by identity because some forwards leave tensors behind (the weight that
    `torch.nn.utils.weight_norm` computes, the flat weights of an LSTM), which inside torch.func
    are wrappers that are dead once it returns.
    """
    modules = [] if model is None else list(model.modules())
    saved = [dict(vars(m)) for m in modules]
    try:
        for m in modules:
            m.training = False
        yield
    finally:
        for m, attributes in zip(modules, saved, strict=True):
            current = vars(m)
            for name in [n for n in current if n not in attributes]:
                del current[name]
            current.update(attributes)


@contextlib.contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    devices = [] if device.type in ("cpu", "meta") else [device]
    python, numpy = random.getstate(), np.random.get_state()
    kind = "cuda" if device.type == "cpu" else device.type
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _backend_flags(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    recurrent = model is not None and any(isinstance(m, nn.RNNBase) for m in model.modules())
    fastpath = torch.backends.mha.get_fastpath_enabled()
    mkldnn = torch.backends.mkldnn.enabled
    cudnn = torch.backends.cudnn.enabled
    reduced = _reduced_precision(device)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if recurrent:
            # oneDNN's LSTM has no forward-mode derivative, cuDNN's no backward in eval mode.
            torch.backends.mkldnn.enabled = False
            torch.backends.cudnn.enabled = False
        for setting, _ in reduced:
            setting.fp32_precision = "ieee"
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        if recurrent:
            torch.backends.mkldnn.enabled = mkldnn
            torch.backends.cudnn.enabled = cudnn
        for setting, value in reduced:
            setting.fp32_precision = value


def _reduced_precision(device: torch.device) -> list[tuple[object, str]]:
    """Settings under which float32 products on this device are not computed in float32."""
    if device.type == "cuda":
        settings = [
            torch.backends.cuda.matmul,
            torch.backends.cudnn.conv,
            torch.backends.cudnn.rnn,
        ]
    elif device.type == "cpu":
        settings = [
            torch.backends.mkldnn.matmul,
            torch.backends.mkldnn.conv,
            torch.backends.mkldnn.rnn,
        ]
    else:
        settings = []
    current = [(s, str(s.fp32_precision)) for s in settings]
    return [(s, value) for s, value in current if value not in ("none", "ieee")]


@contextlib.contextmanager
def _without_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for text in _OWN_WARNINGS:
            warnings.filterwarnings("ignore", message=text)
        yield
