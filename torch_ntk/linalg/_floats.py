"""A caller's tensors converted to float64, checked and detached."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_finite, check_tensor, type_error, value_error

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def float64_device(device: torch.device) -> torch.device:
    """The device on which float64 work for a tensor on `device` is done.

    It is `device` itself, or the CPU where the hardware has no float64 (Apple's MPS).
    """
    return torch.device("cpu") if device.type == "mps" else device


def as_float64(name: str, value: object, remedy: str = "", *, may_be_empty: bool = False) -> Tensor:
    """`value` in float64, outside autograd and checked; the caller's tensor is not touched.

    The result may share the caller's memory, so it must not be written to.

    Args:
        name: The argument's name, for messages.
        value: The tensor.
        remedy: What to do about a tensor of another dtype.
        may_be_empty: Whether a tensor without entries is accepted.

    Returns:
        A detached float64 tensor on the same device (the CPU for MPS).

    Raises:
        TypeError: It is not a dense tensor of a real floating-point dtype.
        ValueError: It is empty (unless `may_be_empty`) or not finite.
    """
    tensor = check_tensor(name, value)
    if tensor.dtype not in _FLOATS:
        raise type_error(
            name,
            "a tensor of real floating-point numbers (float64, float32, bfloat16 or float16)",
            tensor,
            remedy or "Convert it with .to(torch.float64) if its entries are real numbers.",
        )
    if tensor.numel() == 0 and not may_be_empty:
        raise value_error(name, "non-empty", tensor, "Pass at least one sample.")
    tensor = tensor.detach()
    # Two steps: a device without float64 cannot convert before it has sent the data.
    tensor = tensor.to(float64_device(tensor.device)).to(torch.float64)
    return check_finite(name, tensor, "Find where the NaN or infinity comes from first.")
