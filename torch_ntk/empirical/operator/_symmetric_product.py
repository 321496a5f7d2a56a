"""A symmetric matrix of which algorithms use only products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..._checks import check_finite_number


@dataclass(frozen=True)
class SymmetricProduct:
    """A symmetric positive semidefinite matrix Θ, given by functions.

    Attributes:
        size: The number D of rows.
        dtype: The dtype in which products are computed.
        device: The device of the dense matrix.
        multiply: Returns `Θ v` for a matrix v `[D, M]`; both are float64 on the CPU.
        to_dense: Returns the matrix.
        diagonal: Returns its diagonal `[D]`.
        is_dense_cheaper: Returns whether forming the matrix costs less than some tens of products.
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
        """The relative rounding error of a product."""
        return torch.finfo(self.dtype).eps

    @cached_property
    def trace(self) -> float:
        """The exact trace of the matrix."""
        return float(self.diagonal().double().sum())

    def formed(self) -> SymmetricProduct:
        """Form the matrix in float64 on the CPU, and return it as such a product."""
        matrix = self.to_dense().double().cpu()
        return replace(
            self,
            multiply=lambda v: matrix @ v,
            to_dense=lambda: matrix,
            diagonal=matrix.diagonal,
        )

    def shift(self, diag_reg: object) -> float:
        """Return the number that `diag_reg` adds to the diagonal: `diag_reg · tr Θ/D`."""
        share = self.check_diag_reg(diag_reg)
        return share * self.trace / self.size if share else 0.0

    @staticmethod
    def check_diag_reg(diag_reg: object) -> float:
        """Return `diag_reg` if it is a finite number of at least 0."""
        remedy = "It is added to the kernel's diagonal in units of the diagonal's mean."
        return check_finite_number("diag_reg", diag_reg, minimum=0.0, remedy=remedy)
