"""Interruption of a measurement by SIGTERM.

Lightning, and programs that save a checkpoint before a machine is taken away, handle SIGTERM by
setting a flag, which they read after the batch. A measurement before that batch may take longer
than the time that remains. Therefore the signal ends the measurement.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(BaseException):
    """SIGTERM has been received during a measurement.

    It is not an `Exception`, so that a user's code does not catch it.
    """


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A context in which SIGTERM also raises `Stopped`, if the program has a handler for it.

    The handler is called first. Nothing changes if the signal ends the process or is ignored, and
    in other threads than the main one, in which signals are not handled.
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
