"""Real training of finite networks against the predictions, as the width grows."""

from __future__ import annotations

import math

import pytest
import torch
from predict_problems import draw
from torch import Tensor

from torch_ntk import MLP, empirical_ntk
from torch_ntk.predict import gradient_descent_mse, max_learning_rate

SIGMA_W, SIGMA_B = 1.3, 0.2
WIDTHS = [64, 256, 1024]
DRAWS = 12
STEPS = 25


def infinite_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The NTK of one infinitely wide hidden layer of ReLUs, by the arc-cosine formulas."""

    def first(u: Tensor, v: Tensor) -> Tensor:
        return SIGMA_W**2 * u @ v.T / u.shape[1] + SIGMA_B**2

    norm_a = first(a, a).diagonal().sqrt()[:, None]
    norm_b = first(b, b).diagonal().sqrt()[None, :]
    sigma = first(a, b)
    angle = (sigma / (norm_a * norm_b)).clamp(-1.0, 1.0).arccos()
    slope = (math.pi - angle) / (2 * math.pi)
    relu = norm_a * norm_b * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    return SIGMA_W**2 * relu + SIGMA_B**2 + SIGMA_W**2 * sigma * slope


def gaps(width: int, seed: int) -> tuple[float, float]:
    """Squared distances of trained outputs from predictions: own kernel, and infinite width."""
    torch.manual_seed(seed)
    net = MLP([5, width, 2], "relu", sigma_w=SIGMA_W, sigma_b=SIGMA_B).double()
    x, y, x_test = draw(6, 5, seed=7), draw(6, 2, seed=8), draw(4, 5, seed=9)
    limit, limit_test = infinite_kernel(x, x), infinite_kernel(x_test, x)
    lr = 0.3 * max_learning_rate(limit)
    with torch.no_grad():
        f0, f0_test = net(x), net(x_test)
    own = gradient_descent_mse(empirical_ntk(net, x), y, lr)
    ideal = gradient_descent_mse(limit, y, lr)
    predictions = (
        own(STEPS, f0, f0_test, empirical_ntk(net, x_test, x)),
        ideal(STEPS, f0, f0_test, limit_test),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (0.5 * (net(x) - y).square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        found = [
            float((net(x) - f).square().sum() + (net(x_test) - g).square().sum())
            for f, g in predictions
            if g is not None
        ]
    return found[0], found[1]


def test_the_gap_closes_as_width_grows() -> None:
    """Infinite width is missed by O(width^-½), which the spread of the kernel at init sets.

    From the network's own kernel at initialization, which only drifts, the distance is smaller
    and falls at least as fast.
    """
    own, ideal = [], []
    for width in WIDTHS:
        drawn = [gaps(width, seed) for seed in range(DRAWS)]
        own.append(math.sqrt(sum(d[0] for d in drawn) / DRAWS))
        ideal.append(math.sqrt(sum(d[1] for d in drawn) / DRAWS))
    assert slope(ideal) == pytest.approx(-0.5, abs=0.1)
    assert slope(own) < -0.5
    assert all(a < b for a, b in zip(own, ideal, strict=True))


def slope(values: list[float]) -> float:
    """Of the logarithm over that of the width, by least squares."""
    x = torch.tensor(WIDTHS, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
