"""Matrices as algorithms see them: by their products alone."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_ntk.empirical.operator._symmetric_product import SymmetricProduct


def by_products(
    matrix: Tensor, dtype: torch.dtype = torch.float64, dense: bool = False
) -> SymmetricProduct:
    """A float64 matrix, multiplied in `dtype`; `dense` says that forming it would be cheaper."""

    def multiply(v: Tensor) -> Tensor:
        assert not dense, "the matrix was to be used"
        return (matrix.to(dtype) @ v.to(dtype)).double()

    def to_dense() -> Tensor:
        assert dense, "the matrix was formed"
        return matrix.to(dtype)

    return SymmetricProduct(
        len(matrix),
        dtype,
        torch.device("cpu"),
        multiply,
        to_dense,
        lambda: matrix.diagonal().to(dtype),
        lambda: dense,
    )


def decaying(size: int, rank: int | None = None, power: float = 2.0) -> Tensor:
    """Eigenvalues `k^-power`, as those of kernels fall, `rank` of them, in a random basis."""
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(drawn)[0]
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    values[size if rank is None else rank :] = 0.0
    found = (vectors * values) @ vectors.T
    return 0.5 * (found + found.T)


def columns(size: int, count: int) -> Tensor:
    """Right-hand sides of different norms."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(size, count, generator=generator, dtype=torch.float64)
    return drawn * 10.0 ** torch.arange(count)
