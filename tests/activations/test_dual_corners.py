"""Where a variance is 0 or two arguments agree: defined values, and finite derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from dual_cases import CLOSED, EXPANDED, DualCase
from torch import Tensor

from torch_ntk.activations import DualRectifier

every_case = pytest.mark.parametrize("case", CLOSED + EXPANDED, ids=lambda c: c.name)
RECTIFIERS = [c for c in CLOSED if isinstance(c.dual, DualRectifier)]


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def at_zero(case: DualCase) -> tuple[float, float]:
    """φ(0) and φ'(0), which at a kink is the mean of the one-sided derivatives."""
    around = case.derivative(vector(1e-20, -1e-20).numpy())
    return float(case.value(vector(0.0).numpy())[0]), float(around.mean())


@every_case
def test_a_variance_of_zero(case: DualCase) -> None:
    """u = 0, so κ = φ(0) E[φ(v)] and κ̇ = φ'(0) E[φ'(v)], which zero covariance of any u gives."""
    value, slope = at_zero(case)
    zero, q = vector(0.0), vector(1.3)
    kappa, kappa_dot = case.dual.pair(zero, zero, zero)
    torch.testing.assert_close(kappa, vector(value**2), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(kappa_dot, vector(slope**2), rtol=1e-14, atol=1e-15)
    kappa, kappa_dot = case.dual.diagonal(zero)
    torch.testing.assert_close(kappa, vector(value**2), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(kappa_dot, vector(slope**2), rtol=1e-14, atol=1e-15)
    # Of v alone, from a pair of two independent variables: E[φ(v)]².
    mean_square, slope_square = case.dual.pair(zero, q, q)
    for pair in (case.dual.pair(zero, zero, q), case.dual.pair(zero, q, zero)):
        torch.testing.assert_close(pair[0].square(), value**2 * mean_square, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(
            pair[1].square(), slope**2 * slope_square, rtol=1e-12, atol=1e-15
        )
    distance, kappa_dot = case.dual.pair_from_distance(q, zero, q)
    whole = case.dual.diagonal(q)[0] + value**2 - 2 * case.dual.pair(zero, zero, q)[0]
    torch.testing.assert_close(distance, whole, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(kappa_dot, case.dual.pair(zero, zero, q)[1], rtol=1e-13, atol=1e-15)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_are_finite_everywhere(case: DualCase, dtype: torch.dtype) -> None:
    q1 = torch.tensor([1.0, 1.0, 2.0, 0.0, 0.0, 1.0, 1e-30, 1e-30], dtype=dtype)
    q2 = torch.tensor([1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1e-30, 1.0], dtype=dtype)
    k = torch.tensor([1.0, -1.0, 1.0 + 1e-12, 0.0, 0.0, 0.0, 1e-30, 1e-15], dtype=dtype)
    d = (q1 + q2 - 2 * k).clamp(min=0.0)
    for function, first in ((case.dual.pair, k), (case.dual.pair_from_distance, d)):
        arguments = [t.clone().requires_grad_() for t in (first, q1, q2)]
        for output in function(*arguments):
            assert output.isfinite().all()
            if output.requires_grad:
                gradients = torch.autograd.grad(
                    output.sum(), arguments, allow_unused=True, retain_graph=True
                )
                assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    for output in case.dual.diagonal(q1):
        assert output.isfinite().all()


@pytest.mark.parametrize("case", RECTIFIERS, ids=lambda c: c.name)
def test_derivatives_of_rectifiers_at_the_ends(case: DualCase) -> None:
    """∂κ/∂k = κ̇ also at c = ±1 and at zero variance; ∂κ̇/∂k, infinite at c = ±1, is 0 there."""
    k = vector(1.0, -1.0, 1.5, 0.0, 0.0).requires_grad_()
    q1 = vector(1.0, 1.0, 1.5, 0.0, 0.0).requires_grad_()
    q2 = vector(1.0, 1.0, 1.5, 1.0, 0.0).requires_grad_()
    value, slope = case.dual.pair(k, q1, q2)
    by_k, by_q1, by_q2 = torch.autograd.grad(value.sum(), (k, q1, q2), retain_graph=True)
    torch.testing.assert_close(by_k, slope.detach(), rtol=1e-14, atol=1e-15)
    (second,) = torch.autograd.grad(slope.sum(), k)
    for zero in (by_q1, by_q2, second[:3]):
        torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-17)


def test_rectifiers_at_the_ends_are_exact() -> None:
    relu = RECTIFIERS[0].dual
    one = vector(1.0)
    # Each is its own square root squared only up to rounding.
    q = torch.rand(1000, dtype=torch.float64) * 100
    assert torch.equal(relu.pair(q, q, q)[1], torch.full_like(q, 0.5))
    assert torch.equal(relu.pair(-q, q, q)[1].round(decimals=15), torch.zeros_like(q))
    assert relu.pair(-one, one, one)[0].abs() < 1e-17
    assert relu.pair(one * (1 + 1e-9), one, one)[1] == 0.5


def test_the_derivative_of_the_angle_near_the_end() -> None:
    """∂κ̇/∂k = 1/(2π √(q1 q2 - k²)) for ReLU, until the end itself."""
    k = vector(1 - 1e-4, 1 - 1e-8, 1 - 1e-12, -1 + 1e-8).requires_grad_()
    one = torch.ones(4, dtype=torch.float64)
    (rise,) = torch.autograd.grad(RECTIFIERS[0].dual.pair(k, one, one)[1].sum(), k)
    exact = k.detach()
    expected = 1 / (2 * math.pi * ((1 - exact) * (1 + exact)).sqrt())
    torch.testing.assert_close(rise, expected, rtol=1e-12, atol=0)
