"""A snapshot of everything that a measurement must leave as it found it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from case import Case
from torch import Tensor, nn
from torch.nn.utils import parametrize


def in_training(case: Case) -> nn.Module:
    """As in the middle of training: gradients are there, and the generators have been used."""
    model = case.build()
    for p in model.parameters():
        if p.requires_grad and p.numel():
            p.grad = torch.full_like(p, 0.5)
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    return model


def snapshot(model: nn.Module, *inputs: Any) -> dict[str, Any]:
    """Flat, comparable with `==`: values by their bytes, objects by identity."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            state[f"attribute {name}.{key}"] = _frozen(value)
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        state[f"tensor {name}"] = (id(p), p.requires_grad, p.is_leaf, _bytes(p))
        state[f"grad {name}"] = None if p.grad is None else (id(p.grad), _bytes(p.grad))
    for i, x in enumerate(t for batch in inputs for t in _tensors(batch)):
        state[f"input {i}"] = (_bytes(x), x.requires_grad, x.grad is None)
    return {**state, **settings()}


def settings() -> dict[str, Any]:
    """The random states and the switches of the process."""
    return {
        "torch random": _bytes(torch.get_rng_state()),
        "cuda random": [_bytes(s) for s in torch.cuda.get_rng_state_all()],
        "numpy random": repr(np.random.get_state()),  # noqa: NPY002
        "python random": random.getstate(),
        "mha fastpath": torch.backends.mha.get_fastpath_enabled(),
        "mkldnn": bool(torch.backends.mkldnn.enabled),
        "cudnn": torch.backends.cudnn.enabled,
        "sdp": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ),
        "matmul precision": _matmul_precision(),
        "fp32 precision": [
            str(s.fp32_precision)
            for s in (
                torch.backends.cuda.matmul,
                torch.backends.cudnn.conv,
                torch.backends.cudnn.rnn,
                torch.backends.mkldnn.matmul,
                torch.backends.mkldnn.conv,
                torch.backends.mkldnn.rnn,
            )
        ],
        "autocast": [
            (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")
        ],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "compiler stance": torch._dynamo.eval_frame._stance,
        "parametrization cache": (parametrize._cache_enabled, id(parametrize._cache)),
    }


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, dict) else batch)


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # once it has been set by backend, torch has no answer for all of them
        return "by backend"


def _bytes(t: Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def _frozen(value: Any) -> Any:
    """The identity of an object and, for containers, of its members."""
    if isinstance(value, dict):
        return (id(value), [(k, _member(v)) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return (id(value), [_member(v) for v in value])
    if isinstance(value, Tensor):
        return (id(value), _bytes(value))
    if isinstance(value, torch.Generator):
        return _member(value)
    if isinstance(value, (bool, int, float, str)):
        return value
    return id(value)


def _member(value: Any) -> Any:
    """The identity, and of a generator also its state."""
    return (id(value), _bytes(value.get_state()) if isinstance(value, torch.Generator) else None)
