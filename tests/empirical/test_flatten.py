"""Linear layers on flattened images keep the layout of the images in their backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import ntk_loop, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ntk import NTKLinear, empirical_ntk
from torch_ntk.empirical import _flatten
from torch_ntk.empirical._flatten import Flattened
from torch_ntk.empirical.rules._rule import product


class Net(nn.Module):
    """A convolution, and what follows its activation."""

    def __init__(self, head: Callable[[Any, Tensor], Tensor], last: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.last, self.head = nn.Conv2d(2, 8, 3), last(8 * 9, 3), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, torch.tanh(self.conv(x)))


def _twice(net: Net, y: Tensor) -> Tensor:
    return net.last(y.flatten(1)) * net.last(torch.flatten(y, start_dim=1).sin())


def _written(net: Net, y: Tensor) -> Tensor:
    flat = (y * 1.0).flatten(1)
    flat.mul_(2.0).add_(0.5)
    return net.last(flat)


def _image_written(net: Net, y: Tensor) -> Tensor:
    y = y * 1.0
    flat = y.flatten(1)
    y.zero_()
    return net.last(flat)


def _inside_out(net: Net, y: Tensor) -> Tensor:
    return net.last(y.permute(0, 2, 3, 1).reshape(y.shape[0], -1))


HEADS = {
    "flatten": lambda net, y: net.last(y.flatten(1)),
    "reshape": lambda net, y: net.last(torch.reshape(y, (y.shape[0], -1))),
    "by name": lambda net, y: net.last(torch.flatten(input=y, start_dim=1)),
    "weight of no layer": lambda net, y: F.linear(y.flatten(1), net.last.weight.sin()),
    "transposed": lambda net, y: F.linear(y.flatten(1), net.last.weight.T.reshape(72, 3).T),
    "image as well": lambda net, y: net.last(y.flatten(1)) + y.sum((1, 2, 3))[:, None],
    "twice": _twice,
    "written": _written,
    "image written": _image_written,
    "inside out": _inside_out,
}


@pytest.mark.parametrize("last", [nn.Linear, NTKLinear])
@pytest.mark.parametrize("head", HEADS)
def test_the_kernel_is_right(head: str, last: type[nn.Module]) -> None:
    net, x = Net(HEADS[head], last).double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    kernel = empirical_ntk(net, x, method="structured")
    assert relative_error(kernel, ntk_loop(net, x, x)) < 1e-12


def _image(channels_last: bool = True) -> Tensor:
    image = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    return image.to(memory_format=torch.channels_last) if channels_last else image


def _cotangent(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    flattened, image = Flattened(), image.detach().requires_grad_()
    flat = flattened.call(Tensor.flatten, (image, 1), {})
    out = flattened.call(F.linear, (flat, weight), {})
    return out, torch.autograd.grad(out.sum(), image)[0]


def test_the_cotangent_has_the_layout_of_the_image() -> None:
    image, weight = _image(), torch.randn(5, 36, dtype=torch.float64)
    out, cotangent = _cotangent(image, weight)
    assert cotangent.stride() == image.stride()
    torch.testing.assert_close(out, F.linear(image.flatten(1), weight))
    torch.testing.assert_close(cotangent, weight.sum(0).view(1, 4, 3, 3).expand(2, -1, -1, -1))
    assert _cotangent(_image(False), weight)[1].is_contiguous()


def test_a_wide_weight_is_not_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flatten, "_MOST", 5 * 36 - 1)
    _, cotangent = _cotangent(_image(), torch.randn(5, 36, dtype=torch.float64))
    assert cotangent.is_contiguous()


@pytest.mark.parametrize("columns", [24, 27])
@pytest.mark.parametrize("positions", [3, 700])
@pytest.mark.parametrize("given", [True, False])
def test_every_order_of_a_product(columns: int, positions: int, given: bool) -> None:
    b = torch.randn(2, 10, positions, 32, dtype=torch.float64)
    a = torch.randn(2, positions, columns, dtype=torch.float64)
    out = torch.empty(2, 10, 32, columns, dtype=torch.float64) if given else None
    found = product(b, a, out)
    assert out is None or found is out
    torch.testing.assert_close(found, torch.einsum("notb,nta->noba", b, a))
