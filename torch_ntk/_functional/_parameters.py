"""The tensors of a model: their device and dtype, and which of them need a copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .._checks import value_error
from .._types import Parameters
from ._unwrap import plain_name

_HALF = (torch.float16, torch.bfloat16)


def working_dtype(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """What is computed in: what is asked for, or the model's own, but no half precision."""
    if dtype is not None:
        return dtype
    return torch.float32 if own in _HALF else own


def shareable(
    names: Iterable[str], tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> Parameters:
    """Those of the tensors that can stay where they are, without their history.

    What was made in inference mode cannot be differentiated, and two parameters in the same memory
    must not be one for the functions that are made of them.
    """
    found = {
        n: tensors[n].untyped_storage().data_ptr()
        for n in names
        if tensors[n].dtype == dtype and not tensors[n].is_inference() and tensors[n].numel()
    }
    addresses = list(found.values())
    return {n: tensors[n].detach() for n, a in found.items() if addresses.count(a) == 1}


def copied(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, in `dtype` if it is of floating-point numbers."""
    return t.detach().to(dtype if t.is_floating_point() else t.dtype, copy=True)


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
        if t.is_floating_point():
            dtypes.setdefault(t.dtype, plain_name(name))
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
