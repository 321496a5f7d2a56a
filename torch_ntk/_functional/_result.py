"""Conversion of what a model returns into a matrix with one row of outputs per sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._checks import describe, type_error, value_error
from .._types import ForwardFn
from ._batch import Batch
from ._call import in_words


def rows_of(
    out: Any, batch: Batch, dtype: torch.dtype, forward_fn: ForwardFn | None = None
) -> Tensor:
    """The outputs as a tensor `[N, O]` in `dtype`, from what the model or `forward_fn` returned.

    For one sample the tensor may have no batch dimension. Errors name `forward_fn` if there is one.
    """
    n = len(batch)
    f = tensor_of(out, batch, n, forward_fn)
    name = "model" if forward_fn is None else "forward_fn"
    rows = f.shape[0] if f.ndim else None
    if n == 1 and rows != 0:
        return f.reshape(1, -1).to(dtype)
    if rows != n:
        raise value_error(
            name,
            "a function that returns one row of outputs per sample",
            f"{describe(f)} for {n} sample{'s' if n > 1 else ''}",
            "Its forward must keep the batch dimension first, and return outputs, not a loss. A "
            "model for one sample at a time, or for a fixed number of samples, can be wrapped in "
            "a module that loops over the rows of its input."
            if forward_fn is None
            else "It must keep the batch dimension first. A loss is one number for each sample "
            "(reduction='none'), and not their mean.",
        )
    return f.reshape(n, -1).to(dtype)


def coupled_rows_of(out: Any, batch: Batch, forward_fn: ForwardFn | None = None) -> Tensor:
    """The outputs as a tensor `[N, O]` for a batch that is one input, where N follows from them."""
    f = tensor_of(out, batch, None, forward_fn)
    if f.ndim == 0 or f.numel() == 0:
        raise value_error(
            "model" if forward_fn is None else "forward_fn",
            "a function that returns outputs [N, ...], a row for every sample",
            f,
            "A loss is one number for each sample (reduction='none'), and not their mean.",
        )
    return f.reshape(f.shape[0], -1)


def tensor_of(out: Any, batch: Batch, n: int | None, forward_fn: ForwardFn | None) -> Tensor:
    """The tensor of outputs, with n rows unless n is None, in what a model has returned."""
    f: Tensor = out if isinstance(out, Tensor) else _chosen(out, batch, n, forward_fn)
    if f.is_floating_point():
        return f
    raise type_error(
        "model" if forward_fn is None else "forward_fn",
        "a function with real floating-point outputs",
        f,
        "Return logits instead of classes, and real and imaginary parts "
        "(torch.view_as_real) instead of complex numbers.",
    )


def _chosen(out: Any, batch: Batch, rows: int | None, forward_fn: ForwardFn | None) -> Tensor:
    """The tensor of outputs in a mapping or dataclass: `logits`, or the only suitable tensor."""
    entries: dict[str, Any] = {}
    if isinstance(out, Mapping):
        entries = dict(out)
    elif dataclasses.is_dataclass(out):
        entries = {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    if forward_fn is not None:
        remedy = "Return one of its tensors."
        raise type_error(
            "forward_fn", "a function that returns a tensor [N, ...]", describe(out), remedy
        )
    found: dict[str, Tensor] = {n: t for n, t in entries.items() if _is_output(t, rows)}
    if "logits" in found or len(found) == 1:
        return found.get("logits", next(iter(found.values())))
    is_mapping = isinstance(out, Mapping)
    came, part = describe(out), "[0]"
    if entries:
        listed = ", ".join(f"{n}: {_in_short(t)}" for n, t in entries.items() if t is not None)
        came = f"{came} with the entries {listed}"
        first = next(iter(found or entries))
        part = f"[{first!r}]" if is_mapping else f".{first}"
    elif not isinstance(out, (tuple, list)):
        part = "…"
    raise type_error(
        "model",
        "a function that returns one tensor [N, ...], or a mapping or dataclass with `logits` or "
        "with exactly one floating-point tensor [N, ...]",
        came,
        f"Say which part you mean: forward_fn=lambda model, batch: {in_words(batch.value)}{part}.",
    )


def _is_output(t: object, n: int | None) -> bool:
    """Whether `t` is a floating-point tensor `[n, ...]`, or `[N, ...]` with any N if n is None."""
    is_real = isinstance(t, Tensor) and t.is_floating_point() and t.ndim > 0
    return is_real and (n is None or len(t) == n)  # type: ignore[arg-type]


def _in_short(value: object) -> str:
    """A short description of a value, which for a tensor is its dtype and shape."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return describe(value)
