"""Sizes in words."""

from __future__ import annotations

import math


def size_in_words(size: int) -> str:
    """Bytes as people read them."""
    power = min(4, int(math.log(max(1, size), 1024)))
    return f"{size / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
