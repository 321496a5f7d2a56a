"""Blocks that fit in memory, and smaller ones when the estimate was too high."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch

from .._checks import frames_to_caller
from ._budget import budget

ONE_SAMPLE = (
    "The kernel needs more memory for a single sample than there is. Use a cheaper output "
    "(output='pseudo' needs O times less), fewer parameters (params=[...]), or "
    "method='vector_product', which never forms a sample's whole Jacobian."
)

_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU torch raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(part in text for part in _CPU_OUT_OF_MEMORY)


def plan(n: int, bytes_per_sample: int, device: torch.device) -> int:
    """Return the number of samples per block with which a block stays within the budget."""
    return within(budget(device), n, bytes_per_sample)


def within(available: int, n: int, bytes_per_sample: int) -> int:
    """Return how many of `n` samples fit in `available` bytes, but at least 1."""
    return max(1, min(n, available // max(1, bytes_per_sample)))


class Backoff:
    """Run a computation block by block, with smaller blocks after running out of memory.

    Args:
        n: The number of rows.
        size: The number of rows of the first blocks.
        within: The largest size of the pieces in which a block is itself computed (see `cut`).
            After running out of memory they are halved too, down to 1.
    """

    def __init__(self, n: int, size: int, within: int = 1) -> None:
        self.n = n
        self.size = max(1, min(n, size))
        self._within = within
        self._halvings = 0

    def cut(self, size: int) -> int:
        """The size of pieces inside a block, after the halvings so far."""
        return max(1, size >> self._halvings)

    def run(self, block: Callable[[int, int], None]) -> None:
        """Call `block(start, stop)` until all rows are done, and repeat failed calls on fewer rows.

        Raises:
            MemoryError: Not even a single row fits.
        """
        start = 0
        while start < self.n:
            stop = min(self.n, start + self.size)
            try:
                block(start, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1 and self.cut(self._within) == 1:
                    raise MemoryError(ONE_SAMPLE) from error
                stop = start
            if stop == start:  # not in the handler, where the error keeps the failed tensors alive
                self._shrink()
            start = stop

    def _shrink(self) -> None:
        self.size = max(1, self.size // 2)
        self._halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"Out of memory while computing a kernel: going on with blocks of {self.size} "
            f"samples. Pass batch_size={self.size} to start there.",
            RuntimeWarning,
            stacklevel=frames_to_caller(),
        )


def ranges(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges `(a, b)` of at most `size` that cover `start … stop`."""
    for a in range(start, stop, size):
        yield a, min(stop, a + size)


def even(n: int, size: int) -> int:
    """The size of blocks of `n` that are as many as with `size`, but about equally large."""
    return -(-n // max(1, -(-n // size)))
