"""The caller's limit on memory, `max_memory=`, and what a computation keeps to if it can."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar

from .._checks import describe, type_error, value_error
from ._words import size_in_words

_UNITS = {"": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_limit: ContextVar[int | None] = ContextVar("limit", default=None)
_aim: ContextVar[int | None] = ContextVar("aim", default=None)


def in_bytes(max_memory: int | str) -> int:
    """Bytes as an integer, or words like `"500MB"` (of 1000) and `"2 GiB"` (of 1024).

    Raises:
        TypeError: Neither an integer nor a string.
        ValueError: Not positive, or not a number and a unit.
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


@contextlib.contextmanager
def limited(size: int | None) -> Iterator[None]:
    """Within it, `limit()` is `size`: what all blocks of one computation may take together."""
    token = _limit.set(size)
    try:
        yield
    finally:
        _limit.reset(token)


def limit() -> int | None:
    """Bytes that the caller allows, or None."""
    return _limit.get()


@contextlib.contextmanager
def aiming_at(size: int) -> Iterator[None]:
    """Within it, `aim()` is `size`.

    A computation keeps to about so many bytes where that takes it little more time. Unlike a
    limit it is no reason to refuse anything, nor to compute it twice.
    """
    token = _aim.set(size)
    try:
        yield
    finally:
        _aim.reset(token)


def aim() -> int | None:
    """Bytes that a computation keeps to if it can, or None."""
    return _aim.get()


def check_enough(least: int) -> None:
    """Refuse a limit below the `least` bytes that a single sample takes.

    Raises:
        ValueError: The limit is smaller.
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
