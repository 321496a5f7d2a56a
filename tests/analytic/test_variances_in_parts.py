"""Variances after an average over positions: a few images at a time, and nothing else is kept."""

from __future__ import annotations

import pytest
import torch
from small_nets import conv, dense
from torch import nn

from torch_ntk import NTKSelfAttention, analytic_kernels
from torch_ntk.analytic.engine import _blocks, _variances, _within


def test_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = nn.Sequential(
        *(conv(2, 4, padding=1), nn.ReLU(), nn.AvgPool2d(2), conv(4, 4), nn.ReLU(), nn.Flatten()),
        dense(4, 2),
    )
    looking = nn.Sequential(dense(3, 4), NTKSelfAttention(4, 4, dtype=torch.float64), nn.ReLU())
    sizes, kept = [], []
    original = _variances._from_pairs

    def seen(task, side, which):  # type: ignore[no-untyped-def]
        found = original(task, side, which)
        sizes.append(which.stop - which.start)
        kept.extend(q for q in found if q is not None)
        return found

    monkeypatch.setattr(_variances, "_from_pairs", seen)
    for net, shape in ((pooled, (2, 6, 6)), (looking, (5, 3))):
        x1, x2 = (torch.randn(n, *shape, dtype=torch.float64) for n in (3, 7))
        whole = analytic_kernels(net, x1, x2)
        assert max(sizes) == 7
        sizes.clear()
        monkeypatch.setattr(_variances, "_MOST_ENTRIES", 3 * 36**2 if net is pooled else 3 * 5**2)
        for one, other in zip(analytic_kernels(net, x1, x2), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
        assert sizes == [3, 3, 3, 1]
        sizes.clear()
        monkeypatch.undo()
        monkeypatch.setattr(_variances, "_from_pairs", seen)
    assert all(q.untyped_storage().nbytes() == q.numel() * 8 for q in kept)


def test_the_weights_of_attention_count_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a matrix for each image, of which as many may be kept as fit."""
    net = nn.Sequential(dense(3, 4), NTKSelfAttention(4, 2, dtype=torch.float64))
    x = torch.randn(5, 8, 3, dtype=torch.float64)
    counts: list[int] = []
    original = _within.images

    def counted(task, side, start, stop):  # type: ignore[no-untyped-def]
        counts.append(stop - start)
        return original(task, side, start, stop)

    monkeypatch.setattr(_within, "images", counted)
    whole = analytic_kernels(net, x)
    assert max(counts) == 5
    counts.clear()
    # Room for 64 weights and the variances of three steps, of two images: half of it for each side.
    monkeypatch.setattr(_blocks, "budget", lambda device: 4 * 8 * 2 * (64 + 3 * 8))
    for one, other in zip(analytic_kernels(net, x), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)
    assert max(counts) == 2
