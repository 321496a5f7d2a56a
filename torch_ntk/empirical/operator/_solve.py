"""`(Θ + μ) x = y` by preconditioned conjugate gradients, with a verified residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..._checks import check_finite_number, check_positive_int
from ...linalg import symmetric_eigen
from ._nystroem import Nystroem, sketch
from ._symmetric_product import SymmetricProduct

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class Solution(NamedTuple):
    """The solution of a linear system with a kernel.

    Attributes:
        x: The solution, in the shape of the right-hand sides and the precision of the operator.
        residual: The largest `‖Θx + μx - y‖ / ‖y‖` of all right-hand sides, from a product with the
            returned x.
        products: The number of vectors that were multiplied by Θ; 0 if its matrix was factored.
    """

    x: Tensor
    residual: float
    products: int


Inner = Callable[[Tensor, Tensor], Tensor]
"""Returns an approximate solution for right-hand sides `[D, M]` and target residuals `[M]`."""


def solve(
    product: SymmetricProduct,
    y: Tensor,
    diag_reg: object,
    tol: float | None,
    max_products: int,
    factor: Callable[[float], Inner | None] | None = None,
) -> Solution:
    """Return the solution for all columns of y `[D, M]`, float64 on the CPU.

    A direct solver or conjugate gradients find x. Then the residual is computed by a new product,
    and the solution for this residual is added to x, until the residual is small enough or does not
    decrease any more (iterative refinement). This also corrects the rounding errors of the
    recurrence of conjugate gradients, which are large in float32.

    `factor` returns a direct solver of `Θ + μ` for the given μ, or None if there is no factor. The
    arguments and errors are otherwise those of `NTKOperator.solve`.
    """
    check_positive_int("max_products", max_products)
    tolerance = _TOLERANCE[product.dtype]
    if tol is not None:
        tolerance = check_finite_number("tol", tol, minimum=0.0)
    product.check_diag_reg(diag_reg)
    is_formed = factor is None and product.is_dense_cheaper()
    product = product.formed() if is_formed else product
    shift = product.shift(diag_reg)
    counted = _Counted(product, shift)
    inner = _direct(product, shift) if is_formed else None
    if factor is not None:
        inner = factor(shift)
    is_direct = inner is not None
    if inner is None:
        generator = torch.Generator().manual_seed(0)
        accuracy = max(tolerance, product.eps)
        left = sketch(product, shift, accuracy, y.shape[1], generator)
        counted.products += left.products
        inner = _iterative(left, shift, counted, max_products)
    norms = y.norm(dim=0)
    x, rest, best = torch.zeros_like(y), y, float("inf")
    while True:
        x = _rounded(x + inner(rest, tolerance * norms), product.dtype)
        rest = y - counted.multiply(x)
        relative = torch.where(norms > 0, rest.norm(dim=0) / norms, 0.0)
        residual = float(relative.max())
        if residual <= tolerance:
            return Solution(x, residual, 0 if is_direct else counted.products)
        if not residual < 0.5 * best or counted.rounds >= max_products:
            raise _not_reached(min(best, residual), tolerance, counted, max_products, product)
        best = residual


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()


class _Counted:
    """Products with `Θ + μ` that are counted.

    Attributes:
        products: The number of vectors that were multiplied.
        rounds: The number of calls of `multiply`.
    """

    def __init__(self, product: SymmetricProduct, shift: float) -> None:
        self._product, self._shift = product, shift
        self.products = self.rounds = 0

    def multiply(self, v: Tensor) -> Tensor:
        self.products += v.shape[1]
        self.rounds += 1
        return self._product.multiply(v) + self._shift * v


def _direct(product: SymmetricProduct, shift: float) -> Inner:
    """Return a solver by Cholesky's factor, or by the pseudo-inverse of a singular matrix."""
    matrix = product.to_dense()
    shifted = matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps * torch.linalg.matrix_norm(shifted)
    # Rounding errors can make the last pivots of a singular matrix positive.
    if not failed and bool(factor.diagonal().min().square() > rounding):
        return lambda y, target: torch.cholesky_solve(y, factor)
    eigen = symmetric_eigen("operator", matrix, eps=product.eps, shift=shift)
    inverse = torch.where(eigen.resolved, 1.0 / eigen.values, 0.0)
    return lambda y, target: eigen.vectors @ (inverse[:, None] * (eigen.vectors.T @ y))


def _iterative(left: Nystroem, shift: float, counted: _Counted, max_products: int) -> Inner:
    """Return a solver by conjugate gradients with a Nyström preconditioner."""
    precondition = _preconditioner(left, shift)

    def inner(y: Tensor, target: Tensor) -> Tensor:
        return _conjugate_gradients(counted, precondition, y, target, max_products)

    return inner


def _preconditioner(left: Nystroem, shift: float) -> Callable[[Tensor], Tensor]:
    """Return `v ↦ P⁻¹ v`, where P is the identity on the complement of the sketch's range."""
    rest = left.smallest + shift
    if rest == 0.0:
        return lambda v: v
    return lambda v: rest * left.power(-1.0, shift, rest, v)


def _conjugate_gradients(
    counted: _Counted,
    precondition: Callable[[Tensor], Tensor],
    y: Tensor,
    target: Tensor,
    max_products: int,
) -> Tensor:
    """Return approximate solutions by conjugate gradients (Hestenes, Stiefel 1952).

    Each column has its own recurrence, and all columns share products. A column stops when the
    residual of its recurrence is half of its `target` `[M]`, or when the matrix has no curvature
    along its direction; all stop after `max_products` rounds, counted from the first. The x with
    the smallest residual is returned, because the recurrence of a singular system without a
    solution grows without bound.
    """
    x, r = torch.zeros_like(y), y.clone()
    z = precondition(r)
    p, rz = z.clone(), (r * z).sum(0)
    best, least = x.clone(), r.norm(dim=0)
    going = least > 0.5 * target
    while bool(going.any()) and counted.rounds < max_products:
        index = going.nonzero()[:, 0]
        direction = p[:, index]
        image = counted.multiply(direction)
        curvature = (direction * image).sum(0)
        flat = ~(curvature > 0)
        step = torch.where(flat, 0.0, rz[index] / curvature)
        x[:, index] += step * direction
        r[:, index] -= step * image
        z = precondition(r[:, index])
        now = (r[:, index] * z).sum(0)
        p[:, index] = z + (now / rz[index]) * direction
        rz[index] = now
        norms = r[:, index].norm(dim=0)
        better = index[norms < least[index]]
        best[:, better] = x[:, better]
        least[index] = torch.minimum(norms, least[index])
        going[index] = (norms > 0.5 * target[index]) & ~flat
    return best


def _not_reached(
    reached: float,
    tolerance: float,
    counted: _Counted,
    max_products: int,
    product: SymmetricProduct,
) -> RuntimeError:
    remedies = [
        "raise `diag_reg`, since small eigenvalues of Θ take many products, and a singular kernel "
        "has no solution for every y",
        "raise `tol`",
    ]
    if product.dtype != torch.float64:
        remedies.insert(0, "make the operator with dtype=torch.float64")
    if counted.rounds >= max_products:
        remedies.insert(0, "raise `max_products`")
    advice = "; ".join(remedies)
    return RuntimeError(
        f"The residual ‖Θx + μx - y‖ / ‖y‖ reached {reached:.2g} in {counted.products} products, "
        f"not the tolerance {tolerance:.2g}. {advice[0].upper()}{advice[1:]}."
    )
