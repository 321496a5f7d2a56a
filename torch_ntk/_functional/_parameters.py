"""The tensors of a model: their device and dtype, and which of them need a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._checks import value_error
from ._unwrap import plain_name

_HALF = (torch.float16, torch.bfloat16)


def working_dtype(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """What is computed in: what is asked for, or the model's own, but no half precision."""
    if dtype is not None:
        return dtype
    return torch.float32 if own in _HALF else own


def copied(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, in `dtype` if it is of floating-point numbers, or complex ones of that precision."""
    return followed(t.detach(), dtype)


def followed(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The same, through which autograd goes on to `t`."""
    if t.is_complex():
        dtype = dtype if dtype.is_complex else dtype.to_complex()
    elif not t.is_floating_point():
        dtype = t.dtype
    return t.to(dtype, copy=True)


def real_dtype(t: Tensor) -> torch.dtype | None:
    """The floating type of its numbers, or of their real parts; None for integers."""
    if t.is_complex():
        return t.dtype.to_real()
    return t.dtype if t.is_floating_point() else None


def as_real(t: Tensor) -> Tensor:
    """Complex numbers by their real and imaginary parts `[..., 2]`, in the same memory."""
    return torch.view_as_real(t) if t.is_complex() else t


def common_device_and_dtype(
    argument: str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Where all tensors are, and their dtype or the one asked for.

    Raises:
        ValueError: There are several.
    """
    devices: dict[torch.device, str] = {}
    dtypes: dict[torch.dtype, str] = {}
    for name, t in tensors.items():
        devices.setdefault(t.device, plain_name(name))
        kind = real_dtype(t)
        if kind is not None:
            dtypes.setdefault(kind, plain_name(name))
    if len(devices) > 1:
        came = ", ".join(f"{n!r} on {d}" for d, n in devices.items())
        raise value_error(argument, "on one device", came, "Move it with .to(device).")
    if len(dtypes) > 1 and dtype is None:
        came = ", ".join(f"{n!r} in {d}" for d, n in dtypes.items())
        raise value_error(
            argument,
            "of one dtype",
            came,
            "Choose the one to compute in with dtype=torch.float32 or torch.float64.",
        )
    return next(iter(devices)), next(iter(dtypes)) if dtype is None else dtype
