"""How a kernel is computed, apart from what it is a kernel of."""

from __future__ import annotations

from dataclasses import dataclass

from ..._checks import check_bool
from ...memory import in_bytes


@dataclass(frozen=True)
class Options:
    """Options of a caller for a computation; none of them changes the result.

    Attributes:
        max_memory: Bytes that the blocks may take together; None chooses from what is free.
        progress: Whether to show a progress bar.
    """

    max_memory: int | None
    progress: bool


def checked_options(max_memory: object, progress: object) -> Options:
    """The options as a caller gives them.

    Raises:
        TypeError: One of them is of the wrong kind.
        ValueError: `max_memory` is not positive, or not a number with a unit.
    """
    check_bool("progress", progress)
    size = None if max_memory is None else in_bytes(max_memory)  # type: ignore[arg-type]
    return Options(size, bool(progress))
