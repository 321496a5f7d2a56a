"""A symmetric matrix of which algorithms know products only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..._checks import check_finite_number


@dataclass(frozen=True)
class SymmetricProduct:
    """A symmetric positive semidefinite matrix, known by its products.

    Attributes:
        size: D.
        dtype: Of the products.
        device: Where its dense form would be.
        multiply: `Θ v` of a float64 matrix `[D, M]` on the CPU, likewise.
        to_dense: The matrix.
        diagonal: Its diagonal `[D]`.
        is_dense_cheaper: Whether forming it takes less than some tens of products.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    multiply: Callable[[Tensor], Tensor]
    to_dense: Callable[[], Tensor]
    diagonal: Callable[[], Tensor]
    is_dense_cheaper: Callable[[], bool]

    @property
    def eps(self) -> float:
        """Relative rounding of a product."""
        return torch.finfo(self.dtype).eps

    @cached_property
    def trace(self) -> float:
        """Of the matrix, exactly."""
        return float(self.diagonal().double().sum())

    def formed(self) -> SymmetricProduct:
        """The same, with the matrix in float64 on the CPU, which is formed now."""
        matrix = self.to_dense().double().cpu()
        return replace(
            self,
            multiply=lambda v: matrix @ v,
            to_dense=lambda: matrix,
            diagonal=matrix.diagonal,
        )

    def shift(self, diag_reg: object) -> float:
        """What `diag_reg` adds to the diagonal: so many times its mean.

        Raises:
            TypeError, ValueError: Not a finite number of at least 0.
        """
        share = self.check_diag_reg(diag_reg)
        return share * self.trace / self.size if share else 0.0

    @staticmethod
    def check_diag_reg(diag_reg: object) -> float:
        """Return it if it is a finite number of at least 0."""
        remedy = "It is added to the kernel's diagonal in units of the diagonal's mean."
        return check_finite_number("diag_reg", diag_reg, minimum=0.0, remedy=remedy)
