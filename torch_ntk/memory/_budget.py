"""How many bytes a computation may plan with on a device."""

from __future__ import annotations

import functools
import re
import time
from pathlib import Path

import psutil
import torch

from ._limit import limit

# Larger blocks are not faster: products of matrices reach their full speed well below this size.
_MOST_BYTES = 8 * 1024**3
# The share of the free memory that one computation may plan with. The rest is for memory that the
# plan does not count: allocator fragments, temporary copies inside of batched backward passes.
_SHARE_OF_FREE = 0.4
_SHARE_OF_LIMIT = 0.6
_READ_AGAIN_AFTER = 0.05  # seconds


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; for the CPU the value may be 50 ms old."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        unreserved = max(0, min(free, int(share * total) - reserved))
        return int(unreserved + reserved - torch.cuda.memory_allocated(device))
    # Small kernels ask for it several times, which would take an eighth of their time.
    return _free_on_machine(int(time.monotonic() / _READ_AGAIN_AFTER))


@functools.lru_cache(maxsize=1)
def _free_on_machine(moment: int) -> int:
    available = int(psutil.virtual_memory().available)
    limit = _control_group_free()
    return available if limit is None else min(available, limit)


def _control_group_free(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left under this container's memory limit, which the machine's total does not show.

    Pages of the file cache count as used there, but the operating system frees them on demand.
    """
    for limit_at, used_at, stat_at, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            limit = _text(f"{root}/{limit_at}").strip()
            if not limit.isdigit():  # "max"
                continue
            used = _text(f"{root}/{used_at}").strip()
            found = re.search(rf"^{cache} (\d+)$", _text(f"{root}/{stat_at}"), re.MULTILINE)
        except OSError:
            continue
        if used.isdigit():
            return max(0, int(limit) - int(used) + (0 if found is None else int(found[1])))
    return None


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def budget(device: torch.device) -> int:
    """Bytes that all blocks of one computation together may plan with."""
    allowed = limit()
    if allowed is None:
        return min(_MOST_BYTES, int(_SHARE_OF_FREE * free_memory(device)))
    # Plans count the tensors that exist at the same time, but not every temporary of torch.
    return min(_MOST_BYTES, int(_SHARE_OF_LIMIT * allowed), free_memory(device))
