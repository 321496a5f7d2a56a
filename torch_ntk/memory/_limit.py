"""The caller's limit on memory, `max_memory=`, and a softer target that costs little to keep."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar

from .._checks import describe, type_error, value_error

_UNITS = {"": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_limit: ContextVar[int | None] = ContextVar("limit", default=None)
_aim: ContextVar[int | None] = ContextVar("aim", default=None)


def in_bytes(max_memory: int | str) -> int:
    """Return a size in bytes that is given as an integer or as a text with a unit.

    The unit of `"500MB"` is a power of 1000, and that of `"2 GiB"` is a power of 1024.

    Raises:
        TypeError: `max_memory` is neither an integer nor a string.
        ValueError: It is not positive, or not a number with a unit.
    """
    remedy = "Write for example 2 * 1024**3, '2GB' or '512MiB'."
    expected = "None, a positive number of bytes, or a size with its unit"
    if isinstance(max_memory, bool) or not isinstance(max_memory, (int, str)):
        raise type_error("max_memory", expected, describe(max_memory), remedy)
    if isinstance(max_memory, int):
        size = max_memory
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)(I?)B\s*", max_memory.upper())
        if found is None:
            raise value_error("max_memory", expected, describe(max_memory), remedy)
        number, prefix, binary = found.groups()
        power = _UNITS[prefix]
        base = 1 if not prefix else (1024 if binary else 1000)
        size = int(float(number) * base**power)
    if size < 1:
        raise value_error("max_memory", expected, describe(max_memory), remedy)
    return size


def size_in_words(size: int) -> str:
    """A number of bytes with a unit, such as "1.5 GiB"."""
    power = min(4, int(math.log(max(1, size), 1024)))
    return f"{size / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


@contextlib.contextmanager
def limited(size: int | None) -> Iterator[None]:
    """A context in which `limit()` is `size`, the memory for all blocks of a computation."""
    token = _limit.set(size)
    try:
        yield
    finally:
        _limit.reset(token)


def limit() -> int | None:
    """The bytes that the caller allows for blocks, or None."""
    return _limit.get()


@contextlib.contextmanager
def aiming_at(size: int) -> Iterator[None]:
    """A context in which `aim()` is `size`.

    A computation stays near this number of bytes where that costs little time. Unlike for a limit,
    no computation is refused for it, and nothing is computed twice.
    """
    token = _aim.set(size)
    try:
        yield
    finally:
        _aim.reset(token)


def aim() -> int | None:
    """The bytes that a computation should not exceed if that costs little time, or None."""
    return _aim.get()


def check_enough(least: int) -> None:
    """Refuse a limit below the `least` bytes that a single sample takes.

    Raises:
        ValueError: The limit is smaller than `least`.
    """
    allowed = limit()
    if allowed is not None and least > allowed:
        raise value_error(
            "max_memory",
            f"larger by {size_in_words(least - allowed)}",
            f"a limit that leaves {size_in_words(max(0, allowed))} for blocks, where a single "
            f"sample takes {size_in_words(least)}",
            "Raise it, or use a cheaper output (output='pseudo' needs O times less) or fewer "
            "parameters (params=[...]).",
        )
