"""The eigendecomposition of kernels: what it finds, and what it says about bad ones."""

from __future__ import annotations

import math

import pytest
import torch

from torch_ntk.linalg import SymmetricEigen, symmetric_eigen


def rotated(values: list[float], seed: int = 0) -> torch.Tensor:
    """A dense symmetric matrix with the given eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    matrix = (q * torch.tensor(values, dtype=torch.float64)) @ q.T
    return 0.5 * (matrix + matrix.T)


def test_values_vectors_and_rank() -> None:
    matrix = rotated([0.5, 1.0, 3.0, 7.0])
    eigen = symmetric_eigen("k", matrix)
    expected = torch.tensor([0.5, 1.0, 3.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(eigen.values, expected, rtol=1e-13, atol=1e-13)
    rebuilt = (eigen.vectors * eigen.values) @ eigen.vectors.T
    torch.testing.assert_close(rebuilt, matrix, rtol=1e-13, atol=1e-13)
    assert (eigen.rank, eigen.size) == (4, 4)
    assert eigen.floor == pytest.approx(
        4 * torch.finfo(torch.float64).eps * 7.0, rel=1e-10, abs=0.0
    )


def test_rank_of_a_singular_matrix() -> None:
    eigen = symmetric_eigen("k", rotated([0.0, 0.0, 0.0, 2.0, 5.0, 9.0]))
    assert eigen.rank == 3
    assert eigen.resolved.tolist() == [False] * 3 + [True] * 3
    assert bool((eigen.clipped >= 0).all())
    assert float(eigen.values[:3].abs().max()) < eigen.floor


def test_the_rank_depends_on_the_precision_of_the_entries() -> None:
    matrix = rotated([1e-6, 1.0, 1.0])
    assert symmetric_eigen("k", matrix).rank == 3
    assert symmetric_eigen("k", matrix.half().float(), eps=2.0**-10).rank == 2
    assert symmetric_eigen("k", matrix.float(), eps=1e-5).rank == 2


def test_the_shift_is_added_to_the_diagonal() -> None:
    matrix = rotated([0.0, 1.0, 2.0])
    shifted = symmetric_eigen("k", matrix, shift=0.25)
    expected = torch.tensor([0.25, 1.25, 2.25], dtype=torch.float64)
    torch.testing.assert_close(shifted.values, expected, rtol=1e-13, atol=1e-13)
    assert shifted.floor == pytest.approx(3 * 2.0**-52 * 2.25, rel=1e-12, abs=0.0)
    torch.testing.assert_close(matrix, rotated([0.0, 1.0, 2.0]), rtol=0.0, atol=0.0)


def test_slight_asymmetry_is_averaged_and_raises_the_floor() -> None:
    matrix = rotated([1.0, 2.0, 3.0])
    skewed = matrix.clone()
    skewed[0, 1] += 2e-9
    eigen = symmetric_eigen("k", skewed)
    averaged = torch.linalg.eigvalsh(0.5 * (skewed + skewed.T))
    torch.testing.assert_close(eigen.values, averaged, rtol=1e-14, atol=0.0)
    assert eigen.floor == pytest.approx(math.sqrt(2.0) * 1e-9, rel=1e-6, abs=0.0)


def test_an_asymmetric_matrix_is_refused_with_the_size_and_the_place() -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 0] = 0.5
    text = (
        r"`k_tt` must be symmetric to a relative tolerance of 1\.5e-08; got a matrix with "
        r"max\|A - Aᵀ\| = 0\.5, which is 0\.5 of its largest entry, between rows 0 and 2\. .*order"
    )
    with pytest.raises(ValueError, match=text):
        symmetric_eigen("k_tt", matrix)


def test_an_indefinite_matrix_is_refused_with_how_much() -> None:
    text = (
        r"`k_tt` must be positive semi-definite .*; got a matrix with 2 of 4 eigenvalues below "
        r"-\S+e-15; the smallest is -2 \(0\.5 of the largest, 4\)\. Every kernel"
    )
    with pytest.raises(ValueError, match=text):
        symmetric_eigen("k_tt", rotated([-2.0, -1.0, 1.0, 4.0]))
    with pytest.raises(ValueError, match=r"the smallest is -1 \(with none positive\)\. Do this\."):
        symmetric_eigen("k", -torch.eye(2, dtype=torch.float64), remedy="Do this.")


def test_a_shift_can_make_it_definite() -> None:
    assert symmetric_eigen("k", rotated([-1e-4, 1.0, 4.0]), shift=1e-3).rank == 3


@pytest.mark.parametrize(
    ("matrix", "error", "text"),
    [
        (torch.ones(2, 3), ValueError, r"`k` must be a square matrix \[D, D\]"),
        (torch.ones(3), ValueError, r"`k` must be a square matrix \[D, D\]"),
        (torch.ones(0, 0), ValueError, "`k` must be non-empty"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "real floating-point numbers"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "real floating-point numbers"),
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), ValueError, "must be finite; got 1 NaN"),
        ([[1.0]], TypeError, r"must be a torch\.Tensor"),
    ],
)
def test_what_is_no_matrix(matrix: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        symmetric_eigen("k", matrix)  # type: ignore[arg-type]


def test_the_caller_s_matrix_is_left_alone() -> None:
    matrix = rotated([1.0, 2.0]).requires_grad_()
    before = matrix.detach().clone()
    eigen = symmetric_eigen("k", matrix, shift=1.0)
    assert isinstance(eigen, SymmetricEigen)
    assert not eigen.values.requires_grad
    assert torch.equal(matrix.detach(), before)


def test_the_zero_matrix_has_rank_zero() -> None:
    eigen = symmetric_eigen("k", torch.zeros(3, 3))
    assert (eigen.rank, eigen.floor) == (0, 0.0)
    assert eigen.values.dtype == torch.float64
