"""Other sizes of the pieces in which kernels are computed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torch_ntk.empirical import _pieces


def in_pieces(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Set some sizes of `Pieces`, on every device."""
    for name in ("ON_CPU", "ON_GPU"):
        monkeypatch.setattr(_pieces, name, replace(getattr(_pieces, name), **sizes))
