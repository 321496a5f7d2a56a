"""How many bytes a computation may plan with on a device."""

from __future__ import annotations

import functools
import re
import time
from pathlib import Path

import psutil
import torch

from ._limit import limit

# More than this per block buys no speed: the products are long past their best size.
_MOST_BYTES = 8 * 1024**3
# The share of the free memory that one computation may plan with. The rest is for what the
# plan does not see: allocator fragments, temporary copies inside batched backward passes.
_SHARE = 0.4
_OF_LIMIT = 0.6
_READ_AGAIN_AFTER = 0.05  # seconds


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on a CPU as of at most 50 ms ago."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        unreserved = max(0, min(free, int(share * total) - reserved))
        return int(unreserved + reserved - torch.cuda.memory_allocated(device))
    # A small kernel asks for it several times, and reading it takes as long as the products.
    return _free_on_machine(int(time.monotonic() / _READ_AGAIN_AFTER))


@functools.lru_cache(maxsize=1)
def _free_on_machine(moment: int) -> int:
    available = int(psutil.virtual_memory().available)
    limit = _control_group_free()
    return available if limit is None else min(available, limit)


def _control_group_free(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left under this container's memory limit, which the machine's total does not show.

    Pages of files that the kernel gives back on demand count as used there, but are free.
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
    """Bytes that the blocks of one computation may take together."""
    allowed = limit()
    if allowed is None:
        return min(_MOST_BYTES, int(_SHARE * free_memory(device)))
    # The plans count what stands at the same time, but not every temporary of torch's.
    return min(_MOST_BYTES, int(_OF_LIMIT * allowed), free_memory(device))
