"""Kernels of fewer directions than rows, and diverging steps: defined, and said."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from predict_problems import coupled, draw, shared

from torch_ntk.predict import (
    KernelPair,
    SingularKernelWarning,
    ensemble_mse,
    gp_inference,
    gradient_descent_mse,
    gradient_flow_mse,
    max_learning_rate,
)

TEXT = r"`k_train_train` is singular: its numerical rank is 4 of 6 \(eigenvalues up to "


def test_the_limit_moves_within_the_range_only() -> None:
    """It is the least-squares solution nearest to the start, as training finds it."""
    n, m, features = 6, 3, 4
    a, b = draw(n, features, seed=0), draw(m, features, seed=1)
    y, f0, f0_test = (draw(r, 2, seed=s) for r, s in ((n, 2), (n, 3), (m, 4)))
    predictor = gradient_flow_mse(a @ a.T, y)
    assert predictor.rank == 4
    with pytest.warns(SingularKernelWarning, match=TEXT):
        f_train, f_test = predictor(None, f0, f0_test, b @ a.T)
    moved = torch.linalg.lstsq(a, y - f0).solution  # of least norm, in weights
    torch.testing.assert_close(f_train, f0 + a @ moved, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(f_test, f0_test + b @ moved, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [0.0, 1.0, 1e6])
def test_finite_times_need_no_rank(t: float) -> None:
    """No warning (they are errors here), and the flow of the weights as the oracle."""
    n, m, features = 6, 3, 4
    a, b = draw(n, features, seed=0), draw(m, features, seed=1)
    y = draw(n, seed=2)
    f_train, f_test = gradient_flow_mse(a @ a.T, y)(t, k_test_train=b @ a.T)
    values, vectors = torch.linalg.eigh(a.T @ a)
    weights = vectors @ ((-torch.expm1(-values * t) / values) * (vectors.T @ (a.T @ y)))
    noise = 1e-12 + 1e-14 * t  # eigenvalues of 0 are computed as some 1e-15
    torch.testing.assert_close(f_train, a @ weights, rtol=0.0, atol=noise)
    torch.testing.assert_close(f_test, b @ weights, rtol=0.0, atol=noise)


def test_rounding_of_a_test_kernel_does_not_grow_and_small_rows_do_not_vanish() -> None:
    """y is along the direction that two equal samples cannot move; f_test moves along it with t."""
    k = torch.ones(2, 2, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    k_test = torch.tensor([[1e6, 1e6 * (1.0 + 2.0**-52)], [1e-12, -1e-12]], dtype=torch.float64)
    _, f_test = gradient_flow_mse(k, y)(1e12, k_test_train=k_test)
    assert f_test is not None
    assert f_test[0].item() == 0.0  # 220, were the difference of the entries more than rounding
    assert f_test[1].item() == pytest.approx(2.0, rel=1e-3)


def test_rounding_of_a_float32_test_kernel_does_not_grow() -> None:
    """Its entries differ by float32's rounding, which the float64 train kernel does not know of."""
    k = torch.ones(2, 2, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    k_test = torch.tensor([[1.0, 1.0 + 2.0**-23]])
    _, f_test = gradient_flow_mse(k, y)(1e12, k_test_train=k_test)
    assert f_test is not None
    assert f_test.item() == 0.0
    pair = KernelPair(k_test, k_test)
    assert ensemble_mse(KernelPair(k, k), y)(1e12, pair).mean.item() == 0.0


def test_very_late_is_the_limit() -> None:
    p = shared(n=6, features=4)
    arguments = (p.f0_train, p.f0_test, p.test_train)
    for predictor in (
        gradient_flow_mse(p.train_train, p.y),
        gradient_descent_mse(p.train_train, p.y, 0.5 * max_learning_rate(p.train_train), 0.5),
    ):
        with pytest.warns(SingularKernelWarning, match=TEXT):
            late = predictor(2**53, *arguments)
        late_times = torch.tensor([2.0**53, math.inf], dtype=torch.float64)
        with pytest.warns(SingularKernelWarning, match=TEXT):
            both = predictor(late_times, *arguments)
        for a, b in zip(late, both, strict=True):
            assert a is not None
            assert b is not None
            torch.testing.assert_close(b[1], a, rtol=1e-10, atol=1e-10)


def test_duplicate_samples_with_contradicting_targets() -> None:
    """The two outputs go to the mean of their targets."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([1.0, 3.0, -1.0], dtype=torch.float64)
    with pytest.warns(SingularKernelWarning, match="rank is 2 of 3"):
        f_train, _ = gradient_flow_mse(x @ x.T, y)(None)
    torch.testing.assert_close(f_train, torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64))


def test_regularization_heals_it() -> None:
    p = shared(n=6, features=4)
    _, f_test = gradient_flow_mse(p.train_train, p.y, diag_reg=1e-3)(
        None, k_test_train=p.test_train
    )
    reg = 1e-3 * p.train_train.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    expected = p.test_train @ torch.linalg.solve(p.train_train + reg, p.y)
    torch.testing.assert_close(f_test, expected, rtol=1e-9, atol=1e-9)


def test_regularization_is_weight_decay_towards_the_start() -> None:
    """θ̇ = -∂loss/∂θ - ρ(θ - θ0), and the network's own outputs on the training samples."""
    a, y = draw(5, 8, seed=0), draw(5, seed=1)
    k = a @ a.T
    rho = 0.2 * float(k.diagonal().mean())
    weights, h, time = torch.zeros(8, dtype=torch.float64), 1e-4, 0.3
    for _ in range(round(time / h)):  # the midpoint rule
        half = weights - 0.5 * h * (a.T @ (a @ weights - y) + rho * weights)
        weights = weights - h * (a.T @ (a @ half - y) + rho * half)
    _, f_test = gradient_flow_mse(k, y, diag_reg=0.2)(time, k_test_train=k)
    torch.testing.assert_close(f_test, a @ weights, rtol=1e-6, atol=1e-6)


def test_a_singular_posterior() -> None:
    p = shared(n=6, features=4)
    with pytest.warns(SingularKernelWarning, match=TEXT):
        posterior = gp_inference(p.train_train, p.y)
    mean, covariance = posterior(p.test_train, p.test_test)
    inverse = torch.linalg.pinv(p.train_train, rtol=1e-12, hermitian=True)
    torch.testing.assert_close(mean, p.test_train @ inverse @ p.y, rtol=1e-9, atol=1e-9)
    assert covariance is not None
    # Four directions, all of them seen: nothing is left open.
    assert float(covariance.abs().max()) < 1e-12
    assert posterior.rank == 4


def test_the_warning_points_at_the_caller() -> None:
    p = shared(n=6, features=4)
    for call in (
        lambda: gradient_flow_mse(p.train_train, p.y)(None),
        lambda: gp_inference(p.train_train, p.y),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [w.category for w in caught] == [SingularKernelWarning]
        assert caught[0].filename == __file__


def test_float32_kernels_have_the_rank_of_float32() -> None:
    k = torch.diag(torch.tensor([1.0, 1.0, 1e-8]))
    y = torch.ones(3)
    with pytest.warns(SingularKernelWarning, match="rank is 2 of 3"):
        f_train, _ = gradient_flow_mse(k, y)(None)
    assert f_train.tolist() == [1.0, 1.0, 0.0]
    exact, _ = gradient_flow_mse(k.double(), y)(None)
    torch.testing.assert_close(exact, torch.ones(3, dtype=torch.float64))


def test_the_largest_step_of_a_tiny_kernel() -> None:
    for scale in (1e-12, 1e-150):
        kernel = scale * torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
        assert float(max_learning_rate(kernel)) == pytest.approx(0.5 / scale, rel=1e-12)


def test_the_zero_kernel_moves_nothing() -> None:
    zero, f0 = torch.zeros(3, 3, dtype=torch.float64), draw(3, seed=0)
    predictor = gradient_flow_mse(zero, draw(3, seed=1))
    assert torch.equal(predictor(5.0, f0)[0], f0)
    with pytest.warns(SingularKernelWarning, match="rank is 0 of 3"):
        assert torch.equal(predictor(None, f0)[0], f0)
    assert max_learning_rate(zero) == math.inf
    assert predictor.mode_times.tolist() == [math.inf] * 3


def test_a_step_that_is_too_large_has_no_limit() -> None:
    p = coupled()
    largest = max_learning_rate(p.train_train)
    for factor in (1.0, 1.05):
        predictor = gradient_descent_mse(p.train_train, p.y, factor * largest)
        with pytest.raises(ValueError, match=r"`lr` must be below \S+ for the limit to exist; got"):
            predictor(None)
        assert bool(torch.isfinite(predictor(3)[0]).all())
    with pytest.raises(ValueError, match=r"exceed float64, as lr=.* above the largest stable step"):
        predictor(100_000)
    gradient_descent_mse(p.train_train, p.y, 0.999 * largest)(None)


def test_the_times_of_the_modes() -> None:
    k = torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64))
    y = torch.ones(2, 3, dtype=torch.float64)
    flow = gradient_flow_mse(k, y, reduction="mean")
    torch.testing.assert_close(flow.mode_times, torch.tensor([12.0, 3.0], dtype=torch.float64))
    decay = flow.residual_decay(flow.mode_times)
    expected = torch.full((2,), math.exp(-1.0), dtype=torch.float64)
    torch.testing.assert_close(decay.diagonal(), expected)
    descent = gradient_descent_mse(k, y, 0.1, 0.5)
    torch.testing.assert_close(descent.mode_times, torch.tensor([10.0, 2.5], dtype=torch.float64))
    torch.testing.assert_close(
        gradient_descent_mse(k, y, 0.1).residual_decay(7),
        torch.tensor([0.95**7, 0.8**7], dtype=torch.float64),
    )
    assert flow.eigenvalues.tolist() == [0.5, 2.0]
