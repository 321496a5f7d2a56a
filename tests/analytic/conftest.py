"""Fused loops without a compiler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from torch_ntk.analytic.engine.fused import _loops


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loops that would be compiled run as they are, which takes no compiler and no time."""
    monkeypatch.setattr(_loops, "compiled", lambda function: function)
    _forget()
    yield
    _forget()


def _forget() -> None:
    """Have every loop made anew; `compiled` is asked when they are made."""
    for function in vars(_loops).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
