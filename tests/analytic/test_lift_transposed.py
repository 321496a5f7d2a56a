"""Transposed convolutions: sizes that the call gives, and ordinary ones as torch draws them."""

from __future__ import annotations

import torch
from small_nets import Function, conv, dense
from torch import Tensor, nn

from torch_ntk import (
    NTKConv1d,
    NTKConvTranspose1d,
    NTKConvTranspose2d,
    analytic_kernels,
    ntk_parameterize,
)


class UpAgain(nn.Module):
    """Down, and up again to the size that there was."""

    def __init__(self) -> None:
        super().__init__()
        scales = {"sigma_w": 1.3, "sigma_b": 0.2, "dtype": torch.float64}
        self.first = NTKConv1d(2, 4, 1, **scales)
        self.down = NTKConv1d(4, 4, 2, stride=3, **scales)
        self.up = NTKConvTranspose1d(4, 4, 2, stride=3, **scales)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        up = self.up(torch.relu(self.down(torch.relu(skip))), output_size=skip.shape[2:])
        return up + skip


def test_a_size_from_another_branch_is_a_padding_of_the_output() -> None:
    x1, x2 = (torch.randn(n, 2, 7, dtype=torch.float64) for n in (3, 2))
    net = UpAgain()
    with_size = analytic_kernels(net, x1, x2)

    class Written(UpAgain):
        def forward(self, x: Tensor) -> Tensor:
            skip = self.first(x)
            return self.up(torch.relu(self.down(torch.relu(skip)))) + skip

    written = Written()
    written.up = NTKConvTranspose1d(
        4, 4, 2, stride=3, output_padding=2, sigma_w=1.3, sigma_b=0.2, dtype=torch.float64
    )
    assert written(x1).shape == net(x1).shape == (3, 4, 7)
    for one, other in zip(with_size, analytic_kernels(written, x1, x2), strict=True):
        assert torch.equal(one, other)


def test_an_ordinary_one_as_torch_draws_it() -> None:
    """Its draw has the variance 1/(3 n) with n = out_channels · kernel_size, by no means fan-in."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(3, 50, 4, stride=2, dtype=torch.float64)
    x = torch.randn(3, 3, 5, dtype=torch.float64)
    draws = [nn.ConvTranspose1d(3, 50, 4, stride=2, dtype=torch.float64) for _ in range(2000)]
    outputs = torch.stack([d(x).detach().flatten(1) for d in draws])
    sampled = torch.einsum("dnf,dmf->dnm", outputs, outputs) / outputs.shape[2]
    error = sampled.std(0) / len(draws) ** 0.5
    got = analytic_kernels(layer, x, standard="torch")
    assert float(((sampled.mean(0) - got.nngp).abs() / error).max()) < 3.5
    # Squared gradients: the inputs that meet each weight, and 1 for each bias.
    ones = torch.ones(1, 1, 4, dtype=torch.float64)
    meet = torch.einsum("nct,mct->nmt", x, x)
    spread = torch.nn.functional.conv_transpose1d(meet.reshape(9, 1, 5), ones, stride=2)
    torch.testing.assert_close(got.ntk, spread.mean((1, 2)).view(3, 3) + 1)


def test_a_converted_network_has_the_lifted_kernel_of_its_layers() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 2))
    x = torch.randn(3, 2, 3, 2, dtype=torch.float64)
    converted = ntk_parameterize(net, sigma_b=0.2)
    scales = {"0": (2**0.5, 0.2), "2": (1.0, 0.2)}
    one, two = analytic_kernels(converted, x).nngp, analytic_kernels(net, x, standard=scales).nngp
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def between(layers: list[nn.Module]) -> nn.Module:
    """A layer before, and what sees all pairs of positions after."""
    last = [nn.ReLU(), conv(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(conv(2, 4, 2), nn.ReLU(), *layers, *last, dense(4, 2))


def test_channels_that_become_positions() -> None:
    """Of a transposed convolution each position has one tap, which is a unit of a layer of one."""
    up = NTKConvTranspose2d(4, 4, 2, stride=2, bias=False, sigma_w=2.6, dtype=torch.float64)
    wide = conv(4, 16, 1, sigma_w=1.3, sigma_b=0)
    x1, x2 = torch.randn(3, 2, 4, 3, dtype=torch.float64), torch.randn(2, 2, 4, 3).double()
    for shuffle in (nn.PixelShuffle(2), Function(by_hand)):
        for batches in ((x1, x2), (x1,)):
            found = analytic_kernels(between([wide, shuffle]), *batches)
            for mine, right in zip(found, analytic_kernels(between([up]), *batches), strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-10, atol=0)
    # And of vectors, before and after the activation.
    one = nn.Sequential(nn.Flatten(), dense(24, 4), nn.ReLU())
    tall = nn.Sequential(*one, nn.Unflatten(1, (4, 1, 1)), up, nn.ReLU(), nn.AvgPool2d(2))
    rows = dense(4, 16, 1.3, 0)
    shapes = nn.Unflatten(1, (4, 2, 2)), Function(lambda t: t.view(t.shape[0], 4, 2, 2))
    for shape in shapes:
        for order in ([shape, nn.ReLU()], [nn.ReLU(), shape]):
            net = nn.Sequential(*one, rows, *order, nn.AvgPool2d(2))
            for a, b in zip(analytic_kernels(net, x1), analytic_kernels(tall, x1), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


def by_hand(t: Tensor) -> Tensor:
    n, c, p, q = t.shape
    t = t.view(n, c // 4, 2, 2, p, q).permute(0, 1, 4, 2, 5, 3)
    return t.reshape(n, c // 4, 2 * p, 2 * q)
