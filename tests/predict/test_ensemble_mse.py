"""Mean and covariance of trained ensembles against the map that training applies to a sample."""

from __future__ import annotations

import pytest
import torch
from predict_problems import draw
from scipy.linalg import expm
from torch import Tensor

from torch_ntk.predict import KernelPair, ensemble_mse, gp_inference, gradient_flow_mse

N, M = 6, 4


def kernels() -> tuple[Tensor, Tensor]:
    """NNGP and NTK of the N training and M test samples together, positive definite."""
    a, b = draw(N + M, 30, seed=1), draw(N + M, 40, seed=2)
    nngp = a @ a.T / 30
    return nngp, nngp + b @ b.T / 40


def pairs() -> tuple[KernelPair, KernelPair, Tensor]:
    nngp, ntk = kernels()
    return (
        KernelPair(nngp[:N, :N], ntk[:N, :N]),
        KernelPair(nngp[N:, :N], ntk[N:, :N]),
        nngp[N:, N:],
    )


def by_linear_map(theta: Tensor, y: Tensor, t: float, rate: float) -> tuple[Tensor, Tensor]:
    """f_t = f0_test - A (f0 - y) is linear in f0, so its covariance is L Σ Lᵀ, L = [-A, 1]."""
    nngp, _ = kernels()
    decay = torch.from_numpy(expm(-rate * t * theta[:N, :N].numpy()))
    eye = torch.eye(N, dtype=torch.float64)
    a = torch.linalg.solve(theta[:N, :N], theta[N:, :N].T).T @ (eye - decay)
    linear = torch.cat([-a, torch.eye(M, dtype=torch.float64)], 1)
    return a @ y, linear @ nngp @ linear.T


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ensemble", ["ntk", "nngp"])
def test_mean_and_covariance_at_any_time(ensemble: str, reduction: str) -> None:
    nngp, ntk = kernels()
    y = draw(N, 2, seed=3)
    train, test, square = pairs()
    predictor = ensemble_mse(train, y, ensemble=ensemble, reduction=reduction)  # type: ignore[arg-type]
    times = torch.tensor([0.0, 0.3, 2.0, 1e6], dtype=torch.float64)
    mean, covariance = predictor(times, test, square)
    assert mean.shape == (4, M, 2)
    assert covariance is not None
    assert covariance.shape == (4, M, M)
    rate = 1.0 if reduction == "sum" else 1.0 / (N * 2)
    for i, t in enumerate(times.tolist()):
        expected = by_linear_map(ntk if ensemble == "ntk" else nngp, y, t, rate)
        torch.testing.assert_close(mean[i], expected[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(covariance[i], expected[1], rtol=1e-10, atol=1e-10)
        alone = predictor(t, test, square)
        torch.testing.assert_close(alone.mean, mean[i], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(alone.covariance, covariance[i], rtol=1e-13, atol=1e-13)


def test_before_training_it_is_the_prior() -> None:
    train, test, square = pairs()
    mean, covariance = ensemble_mse(train, draw(N, seed=3))(0, test, square)
    assert torch.equal(mean, torch.zeros(M, dtype=torch.float64))
    torch.testing.assert_close(covariance, square, rtol=1e-14, atol=1e-14)


def test_training_the_last_layer_ends_in_the_bayesian_posterior() -> None:
    train, test, square = pairs()
    y = draw(N, 2, seed=3)
    limit = ensemble_mse(train, y, ensemble="nngp", diag_reg=0.01)(None, test, square)
    posterior = gp_inference(train.nngp, y, diag_reg=0.01)(test.nngp, square)
    torch.testing.assert_close(limit.mean, posterior.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(limit.covariance, posterior.covariance, rtol=1e-12, atol=1e-12)


def test_on_the_training_samples_the_spread_dies_out() -> None:
    train, _, _ = pairs()
    y = draw(N, 2, seed=3)
    mean, covariance = ensemble_mse(train, y)(None, train, train)
    assert covariance is not None
    torch.testing.assert_close(mean, y, rtol=1e-11, atol=1e-11)
    assert float(covariance.abs().max()) < 1e-11


def test_the_mean_is_the_prediction_from_zero() -> None:
    train, test, _ = pairs()
    y = draw(N, 2, seed=3)
    mean, covariance = ensemble_mse(train, y)(1.7, test)
    assert covariance is None
    _, f_test = gradient_flow_mse(train.ntk, y)(1.7, k_test_train=test.ntk)
    torch.testing.assert_close(mean, f_test, rtol=1e-13, atol=1e-13)


def test_a_pair_is_whatever_has_both_kernels() -> None:
    class Other:
        def __init__(self, pair: KernelPair) -> None:
            self.nngp, self.ntk = pair

    train, test, square = pairs()
    y = draw(N, seed=3)
    expected = ensemble_mse(train, y)(1.0, test, square)
    with_square = KernelPair(square, square)
    found = ensemble_mse(Other(train), y)(1.0, Other(test), Other(with_square))
    assert torch.equal(found.mean, expected.mean)
    assert found.covariance is not None
    assert expected.covariance is not None
    assert torch.equal(found.covariance, expected.covariance)


@pytest.mark.parametrize("double", ["nngp", "ntk", "test", "y"])
def test_any_float64_kernel_makes_the_result_float64(double: str) -> None:
    train, test, _ = pairs()
    single = {
        "nngp": train.nngp.float(),
        "ntk": train.ntk.float(),
        "test": test.ntk.float(),
        "y": draw(N, seed=3).float(),
    }
    given = {**single, double: single[double].double()}
    predictor = ensemble_mse(KernelPair(given["nngp"], given["ntk"]), given["y"])
    found = predictor(1.0, KernelPair(test.nngp.float(), given["test"]))
    assert found.mean.dtype is torch.float64
    floats = ensemble_mse(KernelPair(single["nngp"], single["ntk"]), single["y"])
    pair = KernelPair(test.nngp.float(), single["test"])
    assert floats(1.0, pair).mean.dtype is torch.float32


def test_bad_arguments() -> None:
    train, test, square = pairs()
    y = draw(N, seed=3)
    with pytest.raises(TypeError, match="`k_train_train` must be a pair of kernels"):
        ensemble_mse(train.ntk, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`ensemble` must be one of 'ntk', 'nngp'"):
        ensemble_mse(train, y, ensemble="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`k_train_train\.ntk` must be symmetric"):
        ensemble_mse(KernelPair(train.nngp, train.ntk.triu()), y)
    with pytest.raises(ValueError, match=r"`k_train_train\.nngp` must be of shape \[6, 6\]"):
        ensemble_mse(KernelPair(train.nngp[:3, :3], train.ntk), y)
    with pytest.raises(TypeError, match=r"`y` must be .*one_hot"):
        ensemble_mse(train, torch.zeros(N, dtype=torch.int64))
    predictor = ensemble_mse(train, y)
    with pytest.raises(TypeError, match="`k_test_train` must be a pair of kernels"):
        predictor(1.0, test.ntk)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`k_test_train\.nngp` must be of shape \[4, 6\]"):
        predictor(1.0, KernelPair(train.nngp, test.ntk), square)
    with pytest.raises(ValueError, match=r"`k_test_test` must be of shape \[4, 4\]"):
        predictor(1.0, test, train)
    for scale in (1.0, 1e-12):  # symmetric to a share of its own entries
        with pytest.raises(ValueError, match="`k_test_test` must be symmetric"):
            predictor(1.0, test, scale * square.triu())
    with pytest.raises(TypeError, match="`k_test_test` must be the NNGP kernel"):
        predictor(1.0, test, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`t` must be not negative; got -1"):
        predictor(-1.0, test)
