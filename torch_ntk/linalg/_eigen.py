"""The eigendecomposition of a positive semi-definite matrix that carries rounding errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_tensor, value_error
from ._floats import as_float64


@dataclass(frozen=True, eq=False)
class SymmetricEigen:
    """A = V diag(λ) Vᵀ, with the noise floor of the eigenvalues.

    Attributes:
        values: λ `[D]`, float64, ascending, as computed; all are at least `-floor`.
        vectors: V `[D, D]`, float64, with orthonormal columns.
        floor: The size below which an eigenvalue cannot be distinguished from 0.
        rank: The number of eigenvalues above the floor.
    """

    values: Tensor
    vectors: Tensor
    floor: float
    rank: int

    @property
    def size(self) -> int:
        """D, the number of rows."""
        return self.values.numel()

    @property
    def clipped(self) -> Tensor:
        """The eigenvalues with the negative ones, which are noise, set to 0."""
        return self.values.clamp(min=0.0)

    @property
    def resolved(self) -> Tensor:
        """Which eigenvalues exceed the floor, `[D]`, bool."""
        return self.values > self.floor


def symmetric_eigen(
    name: str, matrix: Tensor, *, eps: float | None = None, shift: float = 0.0, remedy: str = ""
) -> SymmetricEigen:
    """Decompose (A + Aᵀ)/2 + shift·1 in float64, where A is a positive semi-definite kernel matrix.

    With the eigenvalues λ of the result, computed in float64, the noise floor is
    max(D · eps · max|λ|, ‖A - Aᵀ‖_F / 2): the rounding of the entries at relative precision eps, or
    the observed asymmetry if that is larger. Eigenvalues up to the floor cannot be distinguished
    from 0; the numerical rank counts the others.

    Args:
        name: The caller's name of the matrix, for messages.
        matrix: A, `[D, D]`.
        eps: The relative precision of the entries, by default that of the matrix's dtype.
        shift: Added to the diagonal.
        remedy: More of what to do about an indefinite matrix.

    Returns:
        The decomposition, on the matrix's device (the CPU for MPS).

    Raises:
        TypeError: `matrix` is not a dense tensor of real floating-point numbers.
        ValueError: It is not square, empty, not finite, asymmetric by more than √eps of its
            largest entry, or has an eigenvalue below `-floor`.

    Example:
        >>> import torch
        >>> from torch_ntk.linalg import symmetric_eigen
        >>> eigen = symmetric_eigen("k", torch.ones(3, 3, dtype=torch.float64))
        >>> eigen.rank, round(eigen.values[-1].item(), 12)
        (1, 3.0)
    """
    given = check_tensor(name, matrix)
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise value_error(name, "a square matrix [D, D]", given)
    a = as_float64(name, given)
    precision = torch.finfo(given.dtype).eps if eps is None else eps
    _check_symmetric(name, a, math.sqrt(precision))
    # Halved before they are added, so that no sum overflows. An exactly symmetric matrix is kept.
    symmetric = 0.5 * a + 0.5 * a.mT
    asymmetry = float(torch.linalg.matrix_norm(a - symmetric))
    if shift:
        symmetric.diagonal().add_(shift)
    values, vectors = torch.linalg.eigh(symmetric)
    largest = float(values.abs().max())
    floor = max(values.numel() * precision * largest, asymmetry)
    _check_semidefinite(name, values, floor, remedy)
    return SymmetricEigen(values, vectors, floor, int((values > floor).sum()))


def _check_symmetric(name: str, a: Tensor, tolerance: float) -> None:
    largest = float(a.abs().max())
    difference = (a - a.mT).abs()
    worst = float(difference.max())
    if worst <= tolerance * largest:
        return
    row, column = divmod(int(difference.argmax()), a.shape[0])
    raise value_error(
        name,
        f"symmetric to a relative tolerance of {tolerance:.2g}",
        f"a matrix with max|A - Aᵀ| = {worst:.3g}, which is {worst / largest:.3g} of its "
        f"largest entry, between rows {row} and {column}",
        "The kernel of the training inputs with themselves is symmetric: the kernel between "
        "two different sets of inputs, or one with its axes in another order, is not.",
    )


def _check_semidefinite(name: str, values: Tensor, floor: float, remedy: str) -> None:
    low, high = float(values[0]), float(values[-1])
    if low >= -floor:
        return
    negative = int((values < -floor).sum())
    relative = f"{-low / high:.3g} of the largest, {high:.3g}" if high > 0 else "with none positive"
    raise value_error(
        name,
        "positive semi-definite to within its noise floor",
        f"a matrix with {negative} of {values.numel()} eigenvalues below -{floor:.3g}; the "
        f"smallest is {low:.6g} ({relative})",
        remedy
        or "Every kernel is positive semi-definite: compute it in float64, and check that it "
        "is one kernel of one set of inputs.",
    )
