"""κ and κ̇ of every activation against quadrature in two dimensions, and what binds the two."""

from __future__ import annotations

import pytest
import torch
from dual_cases import CLOSED, EXPANDED, DualCase, grid, oracle
from torch.autograd import gradcheck, gradgradcheck

INNER = [-0.99, -0.3, 0.0, 0.5, 0.999]
every_case = pytest.mark.parametrize("case", CLOSED + EXPANDED, ids=lambda c: c.name)
closed_case = pytest.mark.parametrize("case", CLOSED, ids=lambda c: c.name)


@every_case
def test_pair_is_the_expectation(case: DualCase) -> None:
    k, q1, q2 = grid()
    value, slope = case.dual.pair(k, q1, q2)
    expected_value, expected_slope = oracle(case, k, q1, q2)
    # The second derivative of ELU jumps, so that its κ̇ converges slowly at |c| near 1.
    slack = 3e-5 if case.name == "elu" else 1e-11
    torch.testing.assert_close(value, expected_value, rtol=1e-11, atol=min(slack, 1e-8))
    torch.testing.assert_close(slope, expected_slope, rtol=1e-11, atol=slack)


@every_case
def test_diagonal_is_the_expectation(case: DualCase) -> None:
    q = torch.tensor([0.2, 1.0, 2.5], dtype=torch.float64)
    for found, expected in zip(case.dual.diagonal(q), oracle(case, q, q, q), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@every_case
def test_diagonal_is_pair_of_equal_arguments(case: DualCase) -> None:
    q = torch.tensor([1e-6, 0.3, 1.0, 7.0], dtype=torch.float64)
    for found, expected in zip(case.dual.diagonal(q), case.dual.pair(q, q, q), strict=True):
        assert found.shape == q.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@every_case
def test_kappa_rises_by_kappa_dot(case: DualCase) -> None:
    """Price's theorem: ∂κ/∂k = κ̇."""
    k, q1, q2 = grid(INNER)
    k.requires_grad_()
    value, slope = case.dual.pair(k, q1, q2)
    (rise,) = torch.autograd.grad(value.sum(), k)
    slack = 1e-4 if case.name == "elu" else 1e-11
    torch.testing.assert_close(rise, slope.detach(), rtol=1e-11, atol=slack)


@every_case
def test_arguments_may_be_exchanged(case: DualCase) -> None:
    k, q1, q2 = grid()
    for a, b in zip(case.dual.pair(k, q1, q2), case.dual.pair(k, q2, q1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


@every_case
def test_variances_broadcast(case: DualCase) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    y = torch.randn(4, 3, dtype=torch.float64)
    k, q1, q2 = x @ y.T, x.square().sum(-1), y.square().sum(-1)
    found = case.dual.pair(k, q1.unsqueeze(1), q2)
    expanded = case.dual.pair(k, q1.unsqueeze(1).expand(5, 4), q2.expand(5, 4))
    one = case.dual.pair(k[1, 2], q1[1], q2[2])
    for whole, same, single in zip(found, expanded, one, strict=True):
        assert whole.shape == (5, 4)
        torch.testing.assert_close(whole, same, rtol=1e-14, atol=1e-15)
        assert single.shape == ()
        torch.testing.assert_close(whole[1, 2], single, rtol=1e-12, atol=1e-14)
    wide = case.dual.pair(k[:1, :1], q1.unsqueeze(1), q2)
    assert [t.shape for t in wide] == [(5, 4), (5, 4)]
    empty = case.dual.pair(k[:0], q1[:0].unsqueeze(1), q2)
    assert [t.shape for t in empty] == [(0, 4), (0, 4)]
    assert [t.shape for t in case.dual.pair(k[:0, 0], q1[:0], q2[:0])] == [(0,), (0,)]
    assert [t.shape for t in case.dual.diagonal(q1[:0])] == [(0,), (0,)]


@every_case
def test_single_precision(case: DualCase) -> None:
    k, q1, q2 = grid()
    exact = case.dual.pair(k, q1, q2)
    single = case.dual.pair(k.float(), q1.float(), q2.float())
    # An angle from a cosine known to 1e-7 is known to 3e-4 near 0.
    for found, expected in zip(single, exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=5e-4)
    for found, expected in zip(case.dual.diagonal(q1.float()), case.dual.diagonal(q1), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@closed_case
def test_derivatives_of_closed_forms(case: DualCase) -> None:
    k, q1, q2 = (t.requires_grad_() for t in grid([-0.9, 0.0, 0.4, 0.95]))
    assert gradcheck(case.dual.pair, (k, q1, q2), atol=1e-7)
    assert gradcheck(case.dual.diagonal, (q1,), atol=1e-7)
    assert gradgradcheck(case.dual.pair, (k, q1, q2), atol=1e-5)
    if case.name in {"erf", "gelu"}:  # smooth at zero variance too
        zeros = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        assert gradcheck(case.dual.pair, zeros, atol=1e-5)
    d = (q1 + q2 - 2 * k).detach().requires_grad_()
    assert gradcheck(case.dual.pair_from_distance, (d, q1, q2), atol=1e-7)


def test_what_is_not_finite_is_not_hidden() -> None:
    one = torch.ones(1, dtype=torch.float64)
    for case in CLOSED[:1] + CLOSED[5:8]:
        for place in range(3):
            arguments = [one, one, one]
            arguments[place] = one * float("nan")
            assert case.dual.pair(*arguments)[0].isnan().all(), (case.name, place)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sine_and_cosine_of_large_variances(dtype: torch.dtype) -> None:
    """Alone, sinh k would overflow where the covariance is in the hundreds."""
    k = torch.tensor([900.0, -900.0, 500.0], dtype=dtype)
    q = torch.full((3,), 900.0, dtype=dtype)
    sine, cosine = CLOSED[7].dual.pair(k, q, q)
    torch.testing.assert_close(sine, torch.tensor([0.5, -0.5, 0.0], dtype=dtype))
    torch.testing.assert_close(cosine, torch.tensor([0.5, 0.5, 0.0], dtype=dtype))
