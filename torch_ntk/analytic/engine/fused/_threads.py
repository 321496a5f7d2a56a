"""Work divided among threads, as many as torch uses."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import torch

# Parts of the work that a thread takes, one after the other: if one is slow, others take more.
_PARTS = 8


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Call `work(begin, end)` on consecutive ranges that together are 0 … count.

    Compiled loops without the interpreter's lock, in plain threads: unlike those of Numba they can
    be entered from several threads at once, and after a fork.

    Args:
        work: A function that does a range of the work; ranges may be done in any order.
        count: The end of the last range.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(0, count)
        return
    size = max(1, -(-count // (threads * _PARTS)))
    begins = itertools.count(0, size)  # handed out under the interpreter's lock
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not errors and (begin := next(begins)) < count:
                work(begin, min(count, begin + size))
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run, daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    run()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
