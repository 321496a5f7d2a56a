"""Complex buffers and parameters in networks with real outputs."""

from __future__ import annotations

import pytest
import torch
from oracle import KERNELS, WAYS, Make, Net, built, check, error, inputs, jacobian, mean
from torch import Tensor, nn

from torch_ntk import empirical_ntk


class Rotary(nn.Module):
    """Rotates pairs of features by angles kept as complex numbers."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)
        angles = torch.arange(2, dtype=torch.float64) + 0.5
        freqs = torch.polar(torch.ones(2, dtype=torch.float64), angles)
        self.register_buffer("freqs_cis", freqs, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.q(x).reshape(-1, 2, 2))
        return torch.view_as_real(pairs * self.freqs_cis).flatten(1)


def _complex(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.complex128))


def _fourier(net: nn.Module, x: Tensor) -> Tensor:
    """A Fourier layer: complex weights on the modes, real outputs."""
    modes = torch.fft.rfft(net.a(x))
    return torch.tanh(torch.fft.irfft(modes * net.w, n=4))


BUFFERS: dict[str, Make] = {
    "rotary": lambda: Rotary(True),
    "not saved": lambda: Rotary(False),
    "of a submodule": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Rotary(True)),
}
PARAMETERS: dict[str, Make] = {
    "fourier": lambda: Net(_fourier, a=nn.Linear(4, 4), w=_complex(3)),
    "modulus": lambda: Net(lambda net, x: (x.to(net.w.dtype) @ net.w).abs(), w=_complex(4, 3)),
    "parts": lambda: Net(
        lambda net, x: torch.view_as_real(net.a(x).to(net.w.dtype) @ net.w).flatten(1),
        a=nn.Linear(4, 2),
        w=_complex(2, 2),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BUFFERS)
def test_buffer(name: str, way: str) -> None:
    check(way, BUFFERS[name], inputs(3, 4))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_with_real_outputs(name: str, way: str) -> None:
    """Its gradients are those of the pair of real and imaginary part."""
    check(way, PARAMETERS[name], inputs(3, 4))


def test_verify() -> None:
    check("verify", BUFFERS["rotary"], inputs(3, 4))
    check("verify", PARAMETERS["fourier"], inputs(3, 4))


@pytest.mark.parametrize("way", KERNELS)
def test_complex_parameter_outside_of_the_selection(way: str) -> None:
    check(way, PARAMETERS["fourier"], inputs(3, 4), names=["a.weight", "a.bias"])


def test_frozen_complex_parameter() -> None:
    def make() -> nn.Module:
        net = PARAMETERS["fourier"]()
        net.w.requires_grad_(False)
        return net

    for way in ("auto", "linearize"):
        check(way, make, inputs(3, 4))


def test_two_batches_and_complex_parameter() -> None:
    x1, x2 = inputs(3, 4), inputs(2, 4, seed=1)
    expected = mean(*(jacobian(built(PARAMETERS["parts"]), x) for x in (x1, x2)))
    found = empirical_ntk(built(PARAMETERS["parts"]), x1, x2, output="mean")
    assert found.dtype == torch.float64
    assert error(found, expected) < 1e-10
