"""The closed form of momentum against the recurrence itself, in 60 digits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from torch_ntk.predict._heavy_ball import decay_and_gain

STEPS = [0, 1, 2, 3, 10, 57, 400]
MOMENTA = [0.0, 1e-12, 0.01, 0.5, 0.9, 0.99]


def curvatures(momentum: float) -> list[float]:
    """x where the roots are slow, separate, equal, complex, negative, and beyond stability."""
    near, far = (1 - math.sqrt(momentum)) ** 2, (1 + math.sqrt(momentum)) ** 2
    edge = 2 * (1 + momentum)
    return [
        0.0, 1e-300, 1e-16, 1e-8, 1e-3, 0.49 * near, 0.51 * near, near * (1 - 1e-7), near,
        near * (1 + 1e-7), 0.3, 1.0, 1 + momentum, 1.7, far * (1 - 1e-6), far, far * (1 + 1e-7),
        edge * (1 - 1e-8), 1.01 * edge,
    ]  # fmt: skip


def by_iteration(x: float, momentum: float) -> dict[int, tuple[Decimal, Decimal]]:
    """(r_k / r_0, (r_0 - r_k) / (x r_0)) at all of STEPS; Decimal takes floats exactly."""
    found = {}
    with localcontext() as context:
        context.prec = 60
        curvature, mu = Decimal(x), Decimal(momentum)
        gain, velocity = Decimal(0), Decimal(0)
        for k in range(max(STEPS) + 1):
            residual = 1 - curvature * gain
            if k in STEPS:
                found[k] = (residual, gain)
            velocity = mu * velocity + residual
            gain += velocity
    return found


@pytest.mark.parametrize("momentum", MOMENTA)
def test_against_the_recurrence(momentum: float) -> None:
    xs = curvatures(momentum)
    decay, gain = decay_and_gain(
        torch.tensor(xs, dtype=torch.float64), torch.tensor(STEPS, dtype=torch.float64), momentum
    )
    for j, x in enumerate(xs):
        expected = by_iteration(x, momentum)
        for i, k in enumerate(STEPS):
            r, g = (float(v) for v in expected[k])
            where = f"x={x}, k={k}"
            # Near a double root the recurrence itself magnifies the rounding of x by k².
            assert decay[i, j].item() == pytest.approx(r, rel=3e-11, abs=3e-11), where
            assert gain[i, j].item() == pytest.approx(g, rel=3e-11, abs=1e-13), where
            assert x * gain[i, j].item() == pytest.approx(x * g, rel=3e-11, abs=1e-13), where


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_slow_modes_stay_exact_for_very_many_steps(momentum: float) -> None:
    """After k steps a slow mode has decayed by exp(-kx/(1 - μ)) up to terms of order x."""
    x, k = 1e-13, 1e13
    decay, gain = decay_and_gain(
        torch.tensor([x], dtype=torch.float64), torch.tensor([k], dtype=torch.float64), momentum
    )
    expected = math.exp(-k * x / (1 - momentum))
    assert decay.item() == pytest.approx(expected, rel=1e-10)
    assert gain.item() == pytest.approx((1 - expected) / x, rel=1e-10)


def test_momentum_zero_is_the_limit_of_small_momentum() -> None:
    x = torch.tensor(curvatures(0.0), dtype=torch.float64)
    steps = torch.tensor([0.0, 1.0, 5.0, 6.0], dtype=torch.float64)
    without, with_little = decay_and_gain(x, steps, 0.0), decay_and_gain(x, steps, 1e-13)
    for a, b in zip(without, with_little, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_parity_of_diverging_modes() -> None:
    """Beyond the stable step the residual alternates and grows."""
    x = torch.tensor([4.2], dtype=torch.float64)
    decay, _ = decay_and_gain(x, torch.tensor([200.0, 201.0], dtype=torch.float64), 0.9)
    assert decay[0].item() > 1e3
    assert decay[1].item() < -decay[0].item()
