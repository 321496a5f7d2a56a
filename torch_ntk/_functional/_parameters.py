"""The tensors of a model: their device and dtype, and which of them need a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._checks import value_error
from ._unwrap import plain_name

_HALF = (torch.float16, torch.bfloat16)


def working_dtype(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """The floating type that the caller has chosen, else the model's own, or float32 for half."""
    if dtype is not None:
        return dtype
    return torch.float32 if own in _HALF else own


def copied(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A detached copy of `t`.

    A floating-point tensor is converted to `dtype`, and a complex one to the complex type of that
    precision. Other tensors keep their dtype.
    """
    return followed(t.detach(), dtype)


def followed(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy as `copied` makes it, but with derivatives that propagate to `t`."""
    if t.is_complex():
        dtype = dtype if dtype.is_complex else dtype.to_complex()
    elif not t.is_floating_point():
        dtype = t.dtype
    return t.to(dtype, copy=True)


def real_dtype(t: Tensor) -> torch.dtype | None:
    """The floating type of real numbers, or of the real parts of complex ones, or else None."""
    if t.is_complex():
        return t.dtype.to_real()
    return t.dtype if t.is_floating_point() else None


def as_real(t: Tensor) -> Tensor:
    """A view `[..., 2]` of the real and imaginary parts of a complex tensor; a real one as is."""
    return torch.view_as_real(t) if t.is_complex() else t


def common_device_and_dtype(
    argument: str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """The device of all tensors, and their floating type or the one that the caller has chosen.

    They must have one device, and one floating type unless the caller has chosen it.
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
