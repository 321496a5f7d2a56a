"""Eigenvalues and what is read from them, against NumPy/SciPy and known spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from torch_ntk.metrics import (
    SpectralSummary,
    condition_number,
    effective_rank,
    lambda_max,
    lambda_min,
    noise_floor,
    numerical_rank,
    spectral_summary,
    spectrum,
)

EPS64 = 2.0**-52
EPS32 = 2.0**-23


def gram(n: int, p: int, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).standard_normal((n, p))
    return features @ features.T


def full_from_matrix(matrix: np.ndarray, n: int, o: int) -> torch.Tensor:
    """Θ[n, m, i, j] of the matrix with rows (n, i), one entry at a time."""
    kernel = torch.empty(n, n, o, o, dtype=torch.float64)
    for a in range(n):
        for b in range(n):
            for i in range(o):
                for j in range(o):
                    kernel[a, b, i, j] = matrix[a * o + i, b * o + j]
    return kernel


def entropic_rank(values: np.ndarray) -> float:
    weights = np.clip(values, 0.0, None)
    weights = weights[weights > 0] / weights.sum()
    return float(np.exp(-(weights * np.log(weights)).sum()))


def test_dense_kernel_agrees_with_scipy() -> None:
    matrix = gram(12, 40)
    expected = scipy.linalg.eigh(matrix, eigvals_only=True)
    kernel = torch.from_numpy(matrix)
    np.testing.assert_allclose(spectrum(kernel).numpy(), expected, rtol=1e-12)
    assert lambda_min(kernel).item() == pytest.approx(expected[0], rel=1e-11)
    assert lambda_max(kernel).item() == pytest.approx(expected[-1], rel=1e-12)
    assert condition_number(kernel).item() == pytest.approx(np.linalg.cond(matrix), rel=1e-10)
    assert effective_rank(kernel).item() == pytest.approx(entropic_rank(expected), rel=1e-12)
    assert numerical_rank(kernel).item() == np.linalg.matrix_rank(matrix) == 12
    assert noise_floor(kernel).item() == pytest.approx(
        12 * EPS64 * expected[-1], rel=1e-12, abs=0.0
    )


def test_full_kernel_is_the_matrix_with_rows_sample_then_output() -> None:
    matrix = gram(12, 30, seed=1)
    kernel = full_from_matrix(matrix, 4, 3)
    np.testing.assert_allclose(
        spectrum(kernel).numpy(), scipy.linalg.eigh(matrix, eigvals_only=True), rtol=1e-11
    )
    # The wrong pairing of indices is another matrix here, not merely a permutation of this one.
    wrong = kernel.reshape(12, 12)
    assert not torch.allclose(wrong, torch.from_numpy(matrix))


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_kronecker_kernel_repeats_each_eigenvalue(outputs: int) -> None:
    matrix = torch.from_numpy(gram(6, 20, seed=2))
    kernel = matrix[:, :, None, None] * torch.eye(outputs, dtype=torch.float64)
    expected = spectrum(matrix).repeat_interleave(outputs)
    torch.testing.assert_close(spectrum(kernel), expected, rtol=1e-11, atol=0.0)
    assert condition_number(kernel).item() == pytest.approx(
        condition_number(matrix).item(), rel=1e-10
    )
    assert effective_rank(kernel).item() == pytest.approx(
        outputs * effective_rank(matrix).item(), rel=1e-11
    )
    assert numerical_rank(kernel).item() == 6 * outputs


def test_general_kronecker_product_multiplies_eigenvalues() -> None:
    samples, outputs = gram(5, 9, seed=3), gram(3, 7, seed=4)
    kernel = torch.einsum("nm,ij->nmij", torch.from_numpy(samples), torch.from_numpy(outputs))
    expected = np.sort(np.outer(np.linalg.eigvalsh(samples), np.linalg.eigvalsh(outputs)).ravel())
    np.testing.assert_allclose(spectrum(kernel).numpy(), expected, rtol=1e-10)


def test_diagonal_layout_unites_the_blocks() -> None:
    blocks = [gram(5, 11, seed=s) * (s + 1) for s in range(3)]
    kernel = torch.from_numpy(np.stack(blocks, axis=-1))
    matrix = scipy.linalg.block_diag(*blocks)
    expected = np.linalg.eigvalsh(matrix)
    summary = spectral_summary(kernel)
    np.testing.assert_allclose(summary.eigenvalues.numpy(), expected, rtol=1e-11)
    assert summary.noise_floor == pytest.approx(15 * EPS64 * expected[-1], rel=1e-11, abs=0.0)
    assert summary.condition == pytest.approx(np.linalg.cond(matrix), rel=1e-10)
    assert summary.effective_rank == pytest.approx(entropic_rank(expected), rel=1e-11)


def test_identity_and_one_by_one() -> None:
    eye = spectral_summary(torch.eye(7, dtype=torch.float64))
    assert (eye.lambda_min, eye.lambda_max, eye.condition) == (1.0, 1.0, 1.0)
    assert eye.numerical_rank == 7
    assert eye.effective_rank == pytest.approx(7.0, abs=1e-13)
    assert eye.effective_rank <= 7.0
    one = spectral_summary(torch.tensor([[3.5]], dtype=torch.float64))
    assert (one.lambda_min, one.condition, one.effective_rank) == (3.5, 1.0, 1.0)
    assert one.noise_floor == 3.5 * EPS64


def test_hilbert_matrix_loses_its_rank_to_rounding() -> None:
    # cond(H_6) = 1.4951058642254665e7 (known); λ_min(H_14) ≈ 1e-19 is far below any float64 noise.
    h6 = torch.from_numpy(scipy.linalg.hilbert(6))
    assert condition_number(h6).item() == pytest.approx(1.4951058642254665e7, rel=1e-8)
    assert numerical_rank(h6).item() == 6
    h14 = spectral_summary(torch.from_numpy(scipy.linalg.hilbert(14)))
    assert h14.is_psd
    assert 0.0 <= h14.lambda_min <= h14.noise_floor
    assert h14.condition == math.inf
    assert h14.numerical_rank == np.linalg.matrix_rank(scipy.linalg.hilbert(14), hermitian=True)
    assert h14.numerical_rank < 14


@pytest.mark.parametrize("seed", range(8))
def test_low_rank_kernel_is_never_negative(seed: int) -> None:
    kernel = torch.from_numpy(gram(20, 5, seed=seed))
    summary = spectral_summary(kernel)
    assert summary.is_psd
    assert summary.lambda_min >= 0.0
    assert summary.condition == math.inf
    assert summary.numerical_rank == 5
    assert 1.0 <= summary.effective_rank <= 5.0 + 1e-9
    # The raw spectrum hides nothing: noise of either sign, all within the floor.
    assert bool((summary.eigenvalues[:15].abs() <= summary.noise_floor).all())


def test_duplicate_samples_lower_the_rank() -> None:
    features = np.random.default_rng(5).standard_normal((6, 50))
    features = np.concatenate([features, features[:2]])
    summary = spectral_summary(torch.from_numpy(features @ features.T))
    assert summary.numerical_rank == 6
    assert 0.0 <= summary.lambda_min <= summary.noise_floor
    assert summary.condition == math.inf


def test_zero_kernel() -> None:
    summary = spectral_summary(torch.zeros(3, 3))
    assert (summary.lambda_min, summary.lambda_max, summary.noise_floor) == (0.0, 0.0, 0.0)
    assert (summary.numerical_rank, summary.effective_rank) == (0, 0.0)
    assert summary.condition == math.inf
    assert summary.is_psd


def test_indefinite_kernel_does_not_look_fine() -> None:
    kernel = torch.diag(torch.tensor([-0.5, 1.0, 2.0], dtype=torch.float64))
    summary = spectral_summary(kernel)
    assert not summary.is_psd
    assert summary.lambda_min == lambda_min(kernel).item() == -0.5
    assert summary.condition == condition_number(kernel).item() == math.inf
    assert math.isnan(summary.effective_rank)
    assert summary.numerical_rank == 3
    with pytest.raises(ValueError, match=r"`kernel` must be positive semi-definite .* -0\.5"):
        effective_rank(kernel)


def test_negative_definite_kernel_has_a_positive_floor() -> None:
    summary = spectral_summary(-torch.eye(4, dtype=torch.float64))
    assert summary.noise_floor == 4 * EPS64
    assert not summary.is_psd
    assert summary.condition == math.inf


def test_negative_noise_within_the_floor_is_zero_and_below_it_stays() -> None:
    inside = torch.diag(torch.tensor([-3 * EPS32 * 0.9, 1.0]).double()).float()
    assert lambda_min(torch.diag(torch.tensor([-EPS32, 1.0]))).item() == 0.0
    assert lambda_min(inside).item() == pytest.approx(-3 * EPS32 * 0.9, rel=1e-6, abs=0.0)
    assert spectral_summary(inside).is_psd is False
    # A positive eigenvalue within the floor may be right: it stays, and the condition is infinite.
    positive = torch.diag(torch.tensor([EPS32, 1.0]))
    assert lambda_min(positive).item() == EPS32
    assert condition_number(positive).item() == math.inf


def test_eps_is_the_precision_of_origin() -> None:
    # Computed in float32, then cast: without eps its noise is taken for eigenvalues.
    features = np.random.default_rng(6).standard_normal((30, 8)).astype(np.float32)
    product = torch.from_numpy(features @ features.T)
    product = (product + product.T) / 2
    cast = product.double()
    assert numerical_rank(cast).item() > 8
    assert numerical_rank(cast, eps=torch.float32).item() == 8
    assert numerical_rank(cast, eps=EPS32).item() == 8
    assert numerical_rank(product).item() == 8
    assert condition_number(cast, eps=torch.float32).item() == math.inf
    assert lambda_min(cast, eps=torch.float32).item() >= 0.0
    floor = noise_floor(cast, eps=torch.float32).item()
    assert floor == pytest.approx(30 * EPS32 * lambda_max(cast).item(), rel=1e-12, abs=0.0)


def test_float32_rounding_of_a_definite_kernel_is_flagged_not_negative() -> None:
    exact = np.eye(40) * 5e-8 + gram(40, 3, seed=7)
    summary = spectral_summary(torch.from_numpy(exact).float())
    assert summary.is_psd
    assert summary.lambda_min >= 0.0
    assert summary.condition == math.inf
    assert summary.numerical_rank == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_taken_up_to_float64(dtype: torch.dtype) -> None:
    kernel = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=dtype)
    values = spectrum(kernel)
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values.numpy(), [1.0, 3.0], rtol=1e-14)
    assert noise_floor(kernel).item() == pytest.approx(
        6 * torch.finfo(dtype).eps, rel=1e-13, abs=0.0
    )


def test_scaling_and_rotation() -> None:
    matrix = gram(10, 25, seed=8)
    rotation = scipy.linalg.qr(np.random.default_rng(9).standard_normal((10, 10)))[0]
    rotated = rotation @ matrix @ rotation.T
    base = spectral_summary(torch.from_numpy(matrix))
    for scale in (1e-150, 1e-3, 7.0, 1e150):
        scaled = spectral_summary(torch.from_numpy(scale * matrix))
        assert scaled.lambda_min == pytest.approx(scale * base.lambda_min, rel=1e-10, abs=0.0)
        assert scaled.noise_floor == pytest.approx(scale * base.noise_floor, rel=1e-10, abs=0.0)
        assert scaled.condition == pytest.approx(base.condition, rel=1e-10)
        assert scaled.effective_rank == pytest.approx(base.effective_rank, rel=1e-11)
        assert scaled.numerical_rank == base.numerical_rank
    turned = spectral_summary(torch.from_numpy(rotated))
    torch.testing.assert_close(turned.eigenvalues, base.eigenvalues, rtol=1e-10, atol=0.0)
    assert turned.effective_rank == pytest.approx(base.effective_rank, rel=1e-11)


def test_numerical_rank_with_a_relative_threshold() -> None:
    kernel = torch.diag(torch.tensor([1e-6, 1e-3, 1.0], dtype=torch.float64))
    assert [numerical_rank(kernel, rtol=r).item() for r in (0.0, 1e-4, 1e-2, 1.0)] == [3, 2, 1, 0]
    # Relative to the largest size of an eigenvalue, whatever its unit and its sign.
    for scale in (1e-9, 1e9, -1e9):
        scaled = scale * kernel
        counts = [numerical_rank(scaled, rtol=r).item() for r in (0.0, 1e-4, 1e-2, 1.0)]
        assert counts == [3, 2, 1, 0]
    assert numerical_rank(kernel).dtype == numerical_rank(kernel, rtol=0.1).dtype == torch.int64
    with pytest.raises(ValueError, match="`rtol` must be a finite number, at least 0"):
        numerical_rank(kernel, rtol=-1e-3)
    with pytest.raises(TypeError, match="`rtol` must be a finite number"):
        numerical_rank(kernel, rtol="small")  # type: ignore[arg-type]


def test_the_floor_is_relative_to_the_largest_size() -> None:
    kernel = torch.diag(torch.tensor([-4.0, 1.0], dtype=torch.float64))
    assert noise_floor(kernel).item() == 2 * EPS64 * 4.0


def test_the_effective_rank_of_huge_eigenvalues() -> None:
    """Their sum is beyond float64."""
    kernel = 1e308 * torch.eye(3, dtype=torch.float64)
    assert effective_rank(kernel).item() == pytest.approx(3.0, rel=1e-14)


def test_rounding_asymmetry_is_symmetrized_and_raises_the_floor() -> None:
    matrix = gram(6, 20, seed=10)
    noise = np.random.default_rng(11).standard_normal((6, 6)) * 1e-10
    kernel = torch.from_numpy(matrix + noise)
    summary = spectral_summary(kernel)
    expected = np.linalg.eigvalsh(matrix + (noise + noise.T) / 2)
    np.testing.assert_allclose(summary.eigenvalues.numpy(), expected, rtol=1e-11)
    assert summary.noise_floor == pytest.approx(
        np.linalg.norm(noise - noise.T) / 2, rel=1e-4, abs=0.0
    )


def test_asymmetry_beyond_rounding_is_refused_with_its_size() -> None:
    kernel = torch.eye(3, dtype=torch.float64) * 2.0
    kernel[0, 1] = 0.5
    with pytest.raises(ValueError, match=r"`kernel` must be symmetric .* = 0\.5, which is 0\.25"):
        spectrum(kernel)
    # float32 rounding in a float64 tensor: refused until its origin is told.
    kernel[0, 1] = 2e-7
    with pytest.raises(ValueError, match=r"eps=torch\.float32"):
        lambda_min(kernel)
    assert lambda_min(kernel, eps=torch.float32).item() == pytest.approx(2.0, abs=1e-6)
    assert lambda_min(kernel.float()).item() == pytest.approx(2.0, abs=1e-6)


def test_asymmetry_of_a_full_kernel_is_that_of_its_matrix() -> None:
    matrix = gram(6, 20, seed=12)
    kernel = full_from_matrix(matrix, 3, 2)
    assert not torch.allclose(kernel, kernel.transpose(0, 1))  # symmetric only with i, j swapped
    spectrum(kernel)
    kernel[0, 1, 0, 1] += 1.0
    with pytest.raises(ValueError, match="must be symmetric"):
        spectrum(kernel)


@pytest.mark.parametrize(
    ("eps", "error", "text"),
    [
        (0.0, ValueError, "at least 2.22e-16"),
        (1.0, ValueError, "below 1"),
        (-1e-3, ValueError, "at least 2.22e-16"),
        (math.nan, ValueError, "`eps` must be a finite number"),
        ("float32", TypeError, "`eps` must be a finite number"),
        (torch.int32, TypeError, "floating-point dtype"),
    ],
)
def test_bad_eps(eps: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        spectrum(torch.eye(2, dtype=torch.float64), eps=eps)  # type: ignore[arg-type]


def test_eps_finer_than_the_stored_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision of torch\.float32"):
        noise_floor(torch.eye(2), eps=torch.float64)


def test_single_functions_agree_with_the_summary_and_are_float64_scalars() -> None:
    kernel = torch.from_numpy(gram(8, 5, seed=13))
    summary = spectral_summary(kernel)
    assert isinstance(summary, SpectralSummary)
    pairs = [
        (lambda_min(kernel), summary.lambda_min),
        (lambda_max(kernel), summary.lambda_max),
        (condition_number(kernel), summary.condition),
        (effective_rank(kernel), summary.effective_rank),
        (noise_floor(kernel), summary.noise_floor),
    ]
    for value, expected in pairs:
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert type(expected) is float
        assert value.item() == expected
    assert type(summary.numerical_rank) is int
    assert numerical_rank(kernel).item() == summary.numerical_rank
    assert torch.equal(spectrum(kernel), summary.eigenvalues)
    with pytest.raises(AttributeError):
        summary.lambda_min = 1.0  # type: ignore[misc]


def test_negative_noise_has_no_weight_in_the_effective_rank() -> None:
    kernel = torch.diag(torch.tensor([-(2.0**-10), 1.0], dtype=torch.float16))
    assert spectral_summary(kernel).is_psd
    assert effective_rank(kernel).item() == 1.0
