"""Fused loops give the numbers of plain operations: many blocks, biases, many channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from covariance_oracle import kernels
from small_nets import Plus, conv, dense
from torch import Tensor, nn

from torch_ntk import CNTK, analytic_kernels, mlp_kernels
from torch_ntk.analytic.engine.fused import _choose, _loops, _same_positions


def plain(kernel: Callable[[Tensor, Tensor | None], Tensor], a: Tensor, b: Tensor | None) -> Tensor:
    """The same without fused loops: they are not used where derivatives are wanted."""
    return kernel(a.clone().requires_grad_(), b).detach()


@pytest.mark.parametrize("padding", ["zeros", "circular", "valid"])
@pytest.mark.parametrize("side", [20, 28])
def test_images_of_many_blocks_of_displacements(side: int, padding: str) -> None:
    """The last block of displacements overlaps with the one before it, at either size."""
    x1, x2 = torch.randn(2, 1, 2, side, side, dtype=torch.float64)
    kernel = CNTK(3, pooling="gap", sigma_b=0.2, padding=padding)
    wanted = plain(kernel, x1, x2)
    torch.testing.assert_close(kernel(x1, x2), wanted, rtol=1e-12, atol=0)
    # An image with itself has entries of its own at displacement 0, and nowhere else.
    wanted = plain(kernel, x1, None)
    torch.testing.assert_close(kernel(x1), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel(x1, x1.clone()), wanted, rtol=1e-12, atol=0)


def deep_mlp(channels: int) -> nn.Module:
    return nn.Sequential(
        dense(channels, 4, 1.3, 0.4), nn.ReLU(), dense(4, 4, 1.1, 0.3), nn.LeakyReLU(0.2),
        dense(4, 2, 1.0, 0.2),
    )  # fmt: skip


def flattened_cnn(channels: int) -> nn.Module:
    body = Plus(nn.Sequential(nn.ReLU(), conv(4, 4, padding=1, sigma_b=0.5)))
    return nn.Sequential(
        conv(channels, 4, padding=1, sigma_b=0.4), body, nn.ReLU(), conv(4, 4, 2, sigma_b=0.3),
        nn.ReLU(), nn.Flatten(), dense(80, 2, 1.2, 0.6),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": (deep_mlp, ()),
    "cnn": (flattened_cnn, (5, 6)),
}


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.usefixtures("uncompiled")
def test_the_same_positions_in_loops(name: str, channels: int) -> None:
    """Few channels by differences, many by products; near pairs and copies among them."""
    _agree(name, channels)


@pytest.mark.slow
def test_the_same_positions_in_compiled_loops() -> None:
    _agree("cnn", 20)


def _agree(name: str, channels: int) -> None:
    make, spatial = NETS[name]
    net = make(channels)
    x1, x2 = (torch.randn(n, channels, *spatial, dtype=torch.float64) for n in (4, 3))
    x1[1] = x1[0] + 1e-7 * x2[0]
    x2[1] = x1[2]
    for other in (None, x2):
        got = analytic_kernels(net, x1, other, compile=True)
        for mine, wanted in zip(got, kernels(net, x1, other), strict=True):
            # The oracle's angle between near inputs is good to 1e-8.
            torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=0)
        for mine, wanted in zip(got, analytic_kernels(net, x1, other, compile=False), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("uncompiled")
def test_a_large_job_goes_through_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asks, the work decides, and the result does not depend on it."""
    x = torch.randn(30, 4, dtype=torch.float64)
    calls: list[int] = []
    original = _loops.differences

    def counted(channels: int, loop: _loops.Loop) -> _loops.Function:
        calls.append(channels)
        return original(channels, loop)

    monkeypatch.setattr(_same_positions, "differences", counted)
    small = mlp_kernels(x, sigma_b=0.3)
    assert not calls
    monkeypatch.setattr(_choose, "_WORTH_COMPILING", 100.0)
    large = mlp_kernels(x, sigma_b=0.3)
    assert calls == [4]
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


class Branches(nn.Module):
    """A layer, then a factor of the layer's input, and only then the layer's activation."""

    def __init__(self, make: Callable[[int, int], nn.Module], n_in: int) -> None:
        super().__init__()
        self.a, self.b = make(n_in, 4), make(4, 4)
        self.c, self.d = make(4, 4), make(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, half = self.b(y), 0.5 * y
        return self.c(torch.relu(b)) + self.d(torch.relu(half))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.usefixtures("uncompiled")
def test_a_value_that_a_layer_reads_late(pooled: bool) -> None:
    """A layer is done with the activation after it, and its input must be there until then."""
    if pooled:
        make: Callable[[int, int], nn.Module] = lambda i, o: conv(i, o, padding=1)  # noqa: E731
        net: nn.Module = nn.Sequential(Branches(make, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        x = torch.randn(3, 3, 4, 5, dtype=torch.float64)
    else:
        net, x = Branches(dense, 3), torch.randn(3, 3, dtype=torch.float64)
    other = torch.randn_like(x)
    got = analytic_kernels(net, x, other, compile=True)
    wanted = analytic_kernels(net, x.clone().requires_grad_(), other)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=0)
