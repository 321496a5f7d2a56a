"""The recursion in distances, which keeps what covariances lose."""

from __future__ import annotations

import mpmath
import pytest
import torch
from dual_cases import CLOSED, EXPANDED, DualCase, grid
from torch import Tensor

from torch_ntk.activations import DualActivation, DualRectifier

DEPTH = 21
RECTIFIERS = [c for c in CLOSED if isinstance(c.dual, DualRectifier)]


@pytest.mark.parametrize("case", CLOSED + EXPANDED, ids=lambda c: c.name)
def test_distance_is_that_of_pair(case: DualCase) -> None:
    k, q1, q2 = grid()
    distance, slope = case.dual.pair_from_distance(q1 + q2 - 2 * k, q1, q2)
    value, expected_slope = case.dual.pair(k, q1, q2)
    expected = case.dual.diagonal(q1)[0] + case.dual.diagonal(q2)[0] - 2 * value
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=1e-14)
    # Of c = ±1 the subtraction leaves 1e-16, and of the angle 1e-8.
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=3e-8)
    assert bool((distance >= 0).all())


@pytest.mark.parametrize("case", RECTIFIERS, ids=lambda c: c.name)
def test_small_angles(case: DualCase) -> None:
    """Against fifty digits, across the change from the series to the subtraction."""
    a, b = case.dual.positive, case.dual.negative
    q = torch.tensor(1.0, dtype=torch.float64)
    for angle in (1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.2499, 0.2501, 1.0, 2.0, 3.1):
        with mpmath.workdps(50):
            d = 2 * (1 - mpmath.cos(mpmath.mpf(angle)))
            bend = (mpmath.mpf(a) - b) ** 2 / (2 * mpmath.pi)
            mean_square = (mpmath.mpf(a) ** 2 + mpmath.mpf(b) ** 2) / 2
            lag = mpmath.sin(angle) - angle * mpmath.cos(angle)
            expected = float(mean_square * d - 2 * bend * lag)
            expected_slope = float(mean_square - bend * angle)
            given = float(d)
        distance, slope = case.dual.pair_from_distance(q * given, q, q)
        # At an angle near π the distance of |u| and |v| is small beside that of u and v.
        assert float(distance) == pytest.approx(expected, rel=2e-15, abs=1e-15 * given)
        assert float(slope) == pytest.approx(expected_slope, rel=1e-14, abs=1e-15)


SMALL = {
    "sin": lambda m, a, b, k: [m.exp(-a) * m.sinh(a), m.exp(-b) * m.sinh(b), m.sinh(k)],
    "cos": lambda m, a, b, k: [m.exp(-a) * m.cosh(a), m.exp(-b) * m.cosh(b), m.cosh(k)],
    "exp": lambda m, a, b, k: [m.exp(2 * a), m.exp(2 * b), m.exp(k + a + b)],
    "square": lambda m, a, b, k: [3 * a * a, 3 * b * b, a * b + 2 * k * k],
}


@pytest.mark.parametrize("name", SMALL)
def test_small_distances_of_smooth_activations(name: str) -> None:
    """Relative accuracy, with fifty digits for κ(q1) + κ(q2) - 2κ."""
    dual = next(c.dual for c in CLOSED if c.name == name)
    for q1, q2, d in [(1.0, 1.0, 1e-14), (0.7, 0.7 + 2**-30, 1e-12), (2.0, 1.5, 0.2), (1, 1, 0)]:
        given = [torch.tensor(v, dtype=torch.float64) for v in (d, q1, q2)]
        with mpmath.workdps(50):
            a, b = mpmath.mpf(q1), mpmath.mpf(q2)
            k = (a + b - mpmath.mpf(d)) / 2
            first, second, both = SMALL[name](mpmath, a, b, k)
            if name in {"sin", "cos"}:
                both *= mpmath.exp(-(a + b) / 2)
            elif name == "exp":
                both /= mpmath.exp((a + b) / 2)
            expected = float(first + second - 2 * both)
        assert float(dual.pair_from_distance(*given)[0]) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("case", CLOSED + EXPANDED, ids=lambda c: c.name)
def test_equal_arguments_have_no_distance(case: DualCase) -> None:
    """Exactly none, whatever the rounding of κ; and its derivative by d is κ̇."""
    q = torch.rand(50, dtype=torch.float64) * 3
    d = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    distance, slope = case.dual.pair_from_distance(d, q, q)
    assert not distance.any()
    (rise,) = torch.autograd.grad(distance.sum(), d)
    torch.testing.assert_close(rise, slope.detach(), rtol=1e-12, atol=1e-14)


def nearly_equal_inputs() -> Tensor:
    """Four groups of inputs 1e-9 to 1e-5 apart, and exact duplicates."""
    centres = torch.randn(4, 6, dtype=torch.float64)
    rows = [centres]
    for size in (1e-9, 1e-7, 1e-5):
        rows.append(centres[:2] + size * torch.randn(2, 6, dtype=torch.float64))
    return torch.cat([*rows, centres[:1]])


def kernel_by_distance(x: Tensor, dual: DualActivation, gain: float) -> Tensor:
    """Θ of a network of DEPTH layers, from `diagonal` and `pair_from_distance` alone."""
    d = (x.unsqueeze(1) - x).square().sum(-1) / x.shape[1]
    q = x.square().sum(-1) / x.shape[1]
    theta = (q.unsqueeze(1) + q - d) / 2
    for _ in range(DEPTH - 1):
        d, slope = dual.pair_from_distance(d, q.unsqueeze(1), q.unsqueeze(0))
        d, q = gain * d, gain * dual.diagonal(q)[0]
        theta = gain * slope * theta + (q.unsqueeze(1) + q - d) / 2
    return theta


def kernel_by_pair(x: Tensor, dual: DualActivation, gain: float) -> Tensor:
    k = x @ x.T / x.shape[1]
    theta = k
    for _ in range(DEPTH - 1):
        q = k.diagonal()
        k, slope = dual.pair(k, q.unsqueeze(1), q.unsqueeze(0))
        k = gain * k
        theta = gain * slope * theta + k
    return theta


def kernel_in_many_digits(x: Tensor, a: float, b: float) -> Tensor:
    """The same recursion in covariances, with sixty digits."""
    n = len(x)
    theta = torch.empty(n, n, dtype=torch.float64)
    with mpmath.workdps(60):
        gain = 2 / (mpmath.mpf(a) ** 2 + mpmath.mpf(b) ** 2)
        product = mpmath.mpf(a) * b
        bend = (mpmath.mpf(a) - b) ** 2 / (2 * mpmath.pi)
        rows = [[mpmath.mpf(v) for v in row] for row in x.tolist()]
        for i in range(n):
            for j in range(i + 1):
                k, q1, q2 = (
                    mpmath.fdot(rows[s], rows[t]) / x.shape[1] for s, t in ((i, j), (i, i), (j, j))
                )
                r, t = mpmath.sqrt(q1 * q2), k
                for _ in range(DEPTH - 1):
                    # The gain keeps the variances, so r stays.
                    angle = mpmath.acos(min(mpmath.mpf(1), k / r))
                    slope = gain * (product + bend * (mpmath.pi - angle))
                    k = k * slope + gain * bend * r * mpmath.sin(angle)
                    t = slope * t + k
                theta[i, j] = theta[j, i] = float(t)
    return theta


@pytest.mark.parametrize("case", RECTIFIERS[:3], ids=lambda c: c.name)
def test_nearly_equal_inputs_keep_definiteness(case: DualCase) -> None:
    a, b = case.dual.positive, case.dual.negative
    gain = 2 / (a**2 + b**2)
    x = nearly_equal_inputs()
    theta = kernel_by_distance(x, case.dual, gain)
    exact = kernel_in_many_digits(x, a, b)
    torch.testing.assert_close(theta, exact, rtol=1e-12, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(theta)
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]
    # The duplicate cannot be told from the original.
    torch.testing.assert_close(theta[0], theta[-1], rtol=1e-14, atol=0)
    # What the form is for: covariances lose a million times more here.
    lost = (kernel_by_pair(x, case.dual, gain) - exact).abs().max()
    assert lost > 1e4 * (theta - exact).abs().max()
