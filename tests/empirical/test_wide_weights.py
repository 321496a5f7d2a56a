"""Convolutions with many weights run in the layout of these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import ntk_loop, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ntk import empirical_ntk
from torch_ntk.empirical import _wide


def _given(image: Tensor, weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The image that the convolution is given, and its result."""
    given: list[Tensor] = []

    def conv2d(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given.append(x)
        return F.conv2d(x, *args, **kwargs)

    monkeypatch.setattr(_wide, "_CONVOLUTIONS", (conv2d,))
    out = _wide.call(conv2d, (image, weight, None, 2), {"padding": 1})
    torch.testing.assert_close(out, F.conv2d(image, weight, None, 2, 1))
    return given[0], out


def test_images_go_to_the_layout_of_a_wide_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wide, "_MOST", 6 * 4 * 9 - 1)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    image = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    inner = image.to(memory_format=torch.channels_last)
    given, out = _given(inner, weight, monkeypatch)
    assert given.is_contiguous()
    assert out.is_contiguous(memory_format=torch.channels_last)
    # Nothing changes where the layouts agree, or where the weight is not so wide.
    assert _given(image, weight, monkeypatch)[0] is image
    of_weight = weight.to(memory_format=torch.channels_last)
    assert _given(inner, of_weight, monkeypatch)[0] is inner
    monkeypatch.setattr(_wide, "_MOST", 6 * 4 * 9)
    assert _given(inner, weight, monkeypatch)[0] is inner


@pytest.mark.parametrize("most", [0, 2 * 8 * 9, 2**20])
def test_the_kernel_is_right(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all weights wide, one of two, or none, and one that is used twice and in place."""
    monkeypatch.setattr(_wide, "_MOST", most)
    found: list[bool] = []
    differ = _wide._differ

    def watched(image: Tensor, weight: Tensor) -> bool:
        found.append(differ(image, weight))
        return found[-1]

    monkeypatch.setattr(_wide, "_differ", watched)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.last = nn.Linear(8 * 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.one(x))
            y = y + torch.relu_(self.two(torch.relu_(self.two(y))))
            return self.last(y.flatten(1))

    net, x = Net().double(), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = ntk_loop(net, x, x)
    assert relative_error(empirical_ntk(net, x, method="structured"), expected) < 1e-12
    # Where all are wide, no image has its channels innermost; nor is the first one's input so.
    assert any(found) == (most == 2 * 8 * 9)
    assert not all(found)
    net.two.weight.requires_grad_(False)
    part = empirical_ntk(net, x, method="structured")
    assert relative_error(part, ntk_loop(net, x, x)) < 1e-12
