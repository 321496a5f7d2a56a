"""Blocks that fit in memory, and smaller ones when the estimate was too high."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ._budget import budget
from ._out_of_memory import is_out_of_memory

ONE_SAMPLE = (
    "The kernel needs more memory for a single sample than there is. Use a cheaper output "
    "(output='pseudo' needs O times less), fewer parameters (params=[...]), or "
    "method='vector_product', which never forms a sample's whole Jacobian."
)


def plan(n: int, bytes_per_sample: int, device: torch.device) -> int:
    """Samples per block so that a block of `bytes_per_sample` each stays within the budget."""
    return within(budget(device), n, bytes_per_sample)


def within(available: int, n: int, bytes_per_sample: int) -> int:
    """How many of `n` samples fit in so many bytes; at least one is tried."""
    return max(1, min(n, available // max(1, bytes_per_sample)))


class Backoff:
    """Run a computation block by block, with smaller blocks after running out of memory.

    Args:
        n: Number of rows.
        size: Rows per block at first.
        within: The largest size of the pieces in which a block is itself computed (see `cut`);
            they are halved too, down to 1.
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
        """Call `block(start, stop)` until all rows are done; it must be safe to call again.

        Raises:
            MemoryError: Not even one row fits.
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
            if stop == start:  # outside of the handler, which keeps the failed tensors alive
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
            stacklevel=_frames_to_caller(),
        )


def _frames_to_caller() -> int:
    """The `stacklevel` at which a warning of `_shrink` points to code outside of this package."""
    package = str(Path(__file__).parents[1])
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def ranges(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive `(a, b)` of at most `size` that cover `start … stop`."""
    for a in range(start, stop, size):
        yield a, min(stop, a + size)


def even(n: int, size: int) -> int:
    """The size of as many blocks as `size` makes of `n`, but of about the same size."""
    return -(-n // max(1, -(-n // size)))
