"""Finite networks, drawn at random, have the lifted kernels on average and in the limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic_cases import NETS, Net
from small_nets import conv, dense
from torch import Tensor, nn

from torch_ntk import NTKLinear, analytic_kernels, analytic_ntk
from torch_ntk.sampling import MonteCarloKernel, monte_carlo_kernel

WIDTH = 64
# Where most of the noise is divided out, what is left of a finite width shows more.
WIDER = {"group_norm_affine": 128}
# A kernel needs many outputs to have little noise for the covariance, but few for Θ.
DRAWS, OUTPUTS = {"nngp": 60, "ntk": 20}, {"nngp": None, "ntk": 4}
FINITE = [net for net in NETS if net.finite]
QUICK = ("mlp_of_a_user", "conv_stride")


def deviation(sampled: MonteCarloKernel, limit: Tensor, width: int = WIDTH) -> float:
    """The largest distance over all entries, in standard errors of its entry.

    At a finite width the mean itself is off by a term of order 1/width, which does not count.
    """
    scale = float(limit.abs().max())
    beyond = ((sampled.mean - limit).abs() - 2 * scale / width).clamp(min=0)
    return float((beyond / (sampled.standard_error + 1e-12 * scale)).max())


def with_outputs(net: nn.Module, outputs: int | None) -> nn.Module:
    """`net` with only the first outputs of its last layer."""
    last = [m for m in net.modules() if isinstance(m, NTKLinear)][-1]
    for name, parameter in list(last.named_parameters()):
        setattr(last, name, nn.Parameter(parameter.detach()[:outputs].clone()))
    return net


def _params() -> list[object]:
    return [
        pytest.param(net, id=net.name, marks=[] if net.name in QUICK else [pytest.mark.slow])
        for net in FINITE
    ]


@pytest.mark.parametrize("net", _params())
def test_the_lifted_kernel_is_the_average(net: Net) -> None:
    x1, x2 = net.inputs(2), net.inputs(2, 1)
    lifted = analytic_kernels(net.build(4), x1, x2)
    width = WIDER.get(net.name, WIDTH)
    for kind in ("nngp", "ntk"):
        limit = getattr(lifted, kind)
        sampled = monte_carlo_kernel(
            lambda kind=kind: with_outputs(net.build(width), OUTPUTS[kind]),
            x1,
            x2,
            n_samples=DRAWS[kind] * (2 if len(net.shape) == 1 else 1),
            kind=kind,
            seed=0,
        )
        # Sharp enough to tell the limit from one with a factor that is 20 % off.
        assert deviation(sampled, limit, width) < 3, kind
        assert deviation(sampled, 1.2 * limit, width) > 3, kind


def test_a_trained_gain_that_no_activation_follows() -> None:
    """The gain's own part of the kernel, apart from all others: K of the normalized features."""
    x1, x2 = (torch.randn(2, 4, dtype=torch.float64) for _ in range(2))

    def build(n: int) -> nn.Module:
        net = nn.Sequential(dense(4, n), nn.LayerNorm(n, dtype=torch.float64), dense(n, 8))
        net.requires_grad_(False)
        net[1].weight.requires_grad_(True)
        return net

    limit = analytic_ntk(build(4), x1, x2)
    sampled = monte_carlo_kernel(lambda: build(WIDTH), x1, x2, n_samples=30)
    assert deviation(sampled, limit) < 3
    assert deviation(sampled, limit + 0.1 * limit.abs().max()) > 3


def _gain_only(norm: nn.Module, activation: nn.Module, n: int, images: bool = False) -> nn.Module:
    """A network of which nothing but the gain of its normalization is trained."""
    first = [conv(3, n, padding=1), norm] if images else [dense(4, n), norm]
    last = [nn.Flatten(), dense(n * 9, 8)] if images else [dense(n, 8)]
    net = nn.Sequential(*first, activation, *last).requires_grad_(False)
    norm.weight.requires_grad_(True)
    return net


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Identity()])
def test_a_trained_gain_before_an_activation(activation: nn.Module) -> None:
    """E[u φ'(u) v φ'(v)] of the normalized features u, v, by integrals over a plane."""
    x = torch.randn(3, 4, dtype=torch.float64)

    def build(n: int) -> nn.Module:
        return _gain_only(nn.LayerNorm(n, dtype=torch.float64), activation, n)

    limit = analytic_ntk(build(4), x)
    covariance = 2 * x @ x.T / 4 + 0.01
    scale = (covariance.diagonal() + 1e-5).rsqrt()
    z, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(600))
    z, w = 9 * z, 9 * w * torch.exp(-((9 * z) ** 2) / 2) / math.sqrt(2 * math.pi)
    for i in range(3):
        for j in range(3):
            a, b = scale[i], scale[j]
            q1, q2 = a * a * covariance[i, i], b * b * covariance[j, j]
            k = a * b * covariance[i, j]
            u = q1.sqrt() * z[:, None]
            v = k / q1 * u + (q2 - k * k / q1).clamp(min=0).sqrt() * z
            u = u.expand_as(v)
            expected = (w[:, None] * w * _by_gain(activation, u) * _by_gain(activation, v)).sum()
            # The grid does not know where the kink of ReLU is.
            assert float(limit[i, j]) == pytest.approx(2 * float(expected), rel=1e-3)


def _by_gain(activation: nn.Module, u: Tensor) -> Tensor:
    gain = torch.ones_like(u, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(gain * u).sum(), gain)
    return slope


def test_a_trained_gain_before_a_function_with_jumps_in_its_slope() -> None:
    """E[u² 1(|u| < 1)] = erf(1/√2) - √(2/π) e^(-1/2) for the variance 1."""

    def build(n: int) -> nn.Module:
        return _gain_only(nn.LayerNorm(n, eps=0, dtype=torch.float64), nn.Hardtanh(), n)

    limit = analytic_ntk(build(4), torch.randn(3, 4, dtype=torch.float64))
    expected = math.erf(0.5**0.5) - math.sqrt(2 / math.pi) * math.exp(-0.5)
    torch.testing.assert_close(limit.diagonal(), torch.full((3,), 2 * expected).double())


def test_positions_share_a_trained_gain_before_tanh() -> None:
    def build(n: int) -> nn.Module:
        return _gain_only(nn.GroupNorm(1, n, dtype=torch.float64), nn.Tanh(), n, images=True)

    x1, x2 = (torch.randn(2, 3, 3, 3, dtype=torch.float64) for _ in "12")
    limit = analytic_ntk(build(4), x1, x2)
    sampled = monte_carlo_kernel(lambda: build(WIDTH), x1, x2, n_samples=30)
    assert deviation(sampled, limit) < 3
    assert deviation(sampled, 1.5 * limit) > 3
