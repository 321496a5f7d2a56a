"""A measurement ends when the process is asked to.

Lightning, and programs that save themselves before a machine is taken away, handle SIGTERM by
noting it, and look at the note when a batch is done. A measurement before that batch may take
longer than they have left.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(BaseException):  # no error, and nothing that a user's code may catch
    """SIGTERM has come during a measurement."""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within it, a SIGTERM that the program handles by a function also raises `Stopped`.

    That function is called first. Where the signal ends the process, or is ignored, nothing
    changes; nor in a thread that is not the main one, in which no signals are handled.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    if not callable(before):
        yield
        return
    handle = before

    def stop(number: int, frame: FrameType | None) -> None:
        handle(number, frame)
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
