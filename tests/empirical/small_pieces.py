"""Other sizes of the pieces in which kernels are computed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torch_ntk.empirical.contract import _piece_sizes


def in_pieces(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Set some sizes of `PieceSizes`, on every device."""
    for name in ("ON_CPU", "ON_GPU"):
        monkeypatch.setattr(_piece_sizes, name, replace(getattr(_piece_sizes, name), **sizes))
