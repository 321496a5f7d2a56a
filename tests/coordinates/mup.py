"""Networks of three layers in three parameterizations, and a training of them by plain formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import SGD

from torch_ntk import MLP

INPUTS, OUTPUTS = 6, 5
SIGMA = 2**0.5


def standard(n: int) -> nn.Module:
    """Weights of N(0, σ²/n), the learning rate of all layers the same."""
    widths = [INPUTS, n, n, OUTPUTS]
    return MLP(widths, "tanh", parameterization="standard", bias=False, sigma_w=SIGMA).double()


def ntk(n: int) -> nn.Module:
    """Weights of N(0, 1), scaled where they are used."""
    return MLP([INPUTS, n, n, OUTPUTS], "tanh", bias=False, sigma_w=SIGMA).double()


def mup(n: int) -> nn.Module:
    """As `standard`, but the weights of the last layer are of N(0, σ²/n²)."""
    net = standard(n)
    with torch.no_grad():
        net[4].weight /= math.sqrt(n)  # type: ignore[index]
    return net


def mup_optimizer(net: nn.Module, n: int) -> SGD:
    """Learning rates n η, η and η / n (Yang et al. 2022, table 3, for SGD)."""
    first, hidden, last = (p for p in net.parameters() if p.ndim == 2)
    rates = zip((first, hidden, last), (n, 1.0, 1.0 / n), strict=True)
    return SGD([{"params": [p], "lr": 1e-3 * rate} for p, rate in rates])


def trained_by_hand(
    weights: list[Tensor], x: Tensor, y: Tensor, rates: list[float], steps: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What the layers of `standard` return at the start and at the end, and the last weights.

    Forward and backward pass written out, for L = mean of (f - y)².
    """

    def forward() -> tuple[list[Tensor], list[Tensor]]:
        h1 = x @ w[0].T
        h2 = torch.tanh(h1) @ w[1].T
        return [h1, h2, torch.tanh(h2) @ w[2].T], [x, torch.tanh(h1), torch.tanh(h2)]

    w = [weight.clone() for weight in weights]
    start, inputs = forward()
    for _ in range(steps):
        h, inputs = forward()
        g = 2.0 * (h[2] - y) / y.numel()
        gradients = []
        for k in (2, 1, 0):
            gradients.insert(0, g.T @ inputs[k])
            g = (g @ w[k]) * (1.0 - inputs[k].square())
        w = [weight - rate * d for weight, rate, d in zip(w, rates, gradients, strict=True)]
    return start, forward()[0], w
