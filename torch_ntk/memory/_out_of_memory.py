"""Whether an error says that memory ran out."""

from __future__ import annotations

import torch

_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out; on a CPU this is a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(part in text for part in _CPU_OUT_OF_MEMORY)
