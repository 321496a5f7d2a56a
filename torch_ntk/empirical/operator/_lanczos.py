"""The largest or smallest eigenvalues of a symmetric operator, each with its residual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._checks import check_choice, check_finite_number, check_positive_int, value_error
from ...memory import budget, size_in_words
from ._symmetric_product import SymmetricProduct

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]

_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
_DEFAULT_VECTORS = 20  # the size of ARPACK's smallest basis


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at one end of the spectrum of a kernel; all tensors are on the CPU.

    As with SciPy, it can be unpacked: `values, vectors = theta.eigsh(k)`.

    Attributes:
        values: `[k]`, float64, with the largest (or the smallest) first.
        vectors: `[D, k]`, float64, of norm 1.
        residuals: `[k]`, `‖Θv - λv‖ / |λ|`, from products that are computed after the eigenvalues.
            Each λ lies within `residual·|λ|` of an eigenvalue of Θ.
        rounding: The absolute error that rounding alone may cause, `D·eps·λ_max`. If the smallest
            eigenvalue is below it, the kernel is singular to working precision.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    rounding: float

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.vectors))


def extreme(
    operator: SymmetricProduct, k: int, which: str, tol: float | None, max_products: int
) -> Eigenpairs:
    """Return the `k` largest ("LA") or smallest ("SA") eigenvalues, with verified residuals."""
    check_choice("which", which, ("LA", "SA"), "A kernel has no negative eigenvalues.")
    check_positive_int("k", k)
    check_positive_int("max_products", max_products)
    tolerance = _TOLERANCE[operator.dtype]
    if tol is not None:
        tolerance = check_finite_number("tol", tol, minimum=0.0)
    size = operator.size
    if k > size:
        raise value_error("k", f"at most {size}, the size of the operator", k)
    if which == "SA":
        _check_smallest(operator)
    # In few dimensions ARPACK's basis would span most of the space.
    few = size <= 2 * max(2 * k + 1, _DEFAULT_VECTORS)
    if which == "SA" or few or operator.is_dense_cheaper():
        values, vectors = torch.linalg.eigh(operator.to_dense().double().cpu())
        top = float(values[-1])
        if which == "LA":
            values, vectors = values.flip(0), vectors.flip(1)
        values, vectors = values[:k], vectors[:, :k]
    else:
        values, vectors = _largest(_for_scipy(operator), k, tolerance, max_products)
        top = float(values[0])
    errors = (operator.multiply(vectors) - values * vectors).norm(dim=0)
    residuals = torch.where(errors == 0, errors, errors / values.abs())
    rounding = size * torch.finfo(operator.dtype).eps * top
    return Eigenpairs(values, vectors, residuals, rounding)


def _check_smallest(operator: SymmetricProduct) -> None:
    if operator.dtype != torch.float64:
        raise value_error(
            "which",
            f"'LA' for an operator in {operator.dtype}",
            "'SA'",
            "Rounding hides the smallest eigenvalues there: make the operator with "
            "dtype=torch.float64.",
        )
    need = 4 * 8 * operator.size**2  # the matrix, its eigenvectors, and room to work in
    free = budget(operator.device)
    if need > free:
        raise value_error(
            "which",
            f"'LA' for an operator of shape {(operator.size, operator.size)}",
            "'SA'",
            f"The smallest eigenvalues need the dense matrix, {size_in_words(need)} with its "
            f"decomposition where {size_in_words(free)} may be used; iterative methods "
            "return values that are too large. Use fewer samples or output='mean'.",
        )


def _for_scipy(operator: SymmetricProduct) -> LinearOperator:
    from scipy.sparse.linalg import LinearOperator  # slow to import

    def multiply(v: NDArray[Any]) -> NDArray[Any]:
        matrix = torch.from_numpy(np.asarray(v, dtype=np.float64)).reshape(operator.size, -1)
        return operator.multiply(matrix).numpy().reshape(v.shape)

    shape = (operator.size, operator.size)
    return LinearOperator(shape=shape, matvec=multiply, matmat=multiply, dtype=np.float64)


def _largest(
    operator: LinearOperator, k: int, tolerance: float, max_products: int
) -> tuple[Tensor, Tensor]:
    """Return the `k` largest eigenpairs by ARPACK's implicitly restarted Lanczos method.

    The starting vector is always the same, so that the result is reproducible.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh  # slow to import

    size = operator.shape[0]
    source = torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=source, device="cpu", dtype=torch.float64)
    if not operator.matvec(start.numpy()).any():  # a zero operator has no direction to start in
        return torch.zeros(k, dtype=torch.float64), torch.eye(size, k, dtype=torch.float64)
    basis = min(size, max(2 * k + 1, _DEFAULT_VECTORS))
    try:
        values, vectors = eigsh(
            operator,
            k=k,
            which="LA",
            v0=start.numpy(),
            tol=tolerance,
            ncv=basis,
            maxiter=max(1, max_products // max(1, basis - k)),
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"The Lanczos method found {len(error.eigenvalues)} of {k} eigenvalues to a relative "
            f"tolerance of {tolerance:.1e} in {max_products} products: raise `max_products` or "
            "`tol`, or ask for fewer eigenvalues."
        ) from error
    order = values.argsort()[::-1].copy()
    return torch.from_numpy(values[order]), torch.from_numpy(vectors[:, order].copy())
