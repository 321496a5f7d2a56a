r"""`log det (Θ + μ)`, exactly from the dense matrix or estimated by Lanczos quadrature.

With a Nyström approximation `P = U (λ̂ + μ) Uᵀ + c (1 - U Uᵀ)`, whose determinant is known,

    log det (Θ + μ) = log det P + tr log B,     B = P^{-1/2} (Θ + μ) P^{-1/2},

and only the second term is estimated. If P is close to Θ + μ, B is close to a multiple of the
identity, so that the variance of the estimate and the number of Lanczos steps are small (Wenger et
al., "Preconditioning for scalable Gaussian process hyperparameter optimization", 2022). The number
c is the mean of the remaining eigenvalues, which follows from the trace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._checks import check_positive_int, describe, value_error
from ...memory import budget
from ._lanczos_quadrature import LanczosQuadrature
from ._nystroem import sketch
from ._stochastic_trace import TraceEstimate, mean_and_error, signs
from ._symmetric_product import SymmetricProduct

_SHARE = 0.05  # converged when more Lanczos steps change less than this part of the standard error


def log_determinant(
    product: SymmetricProduct,
    diag_reg: object,
    n_samples: int,
    max_products: int,
    generator: torch.Generator | None,
) -> TraceEstimate:
    """Return the logarithm of the determinant and its standard error."""
    if check_positive_int("n_samples", n_samples) < 2:
        raise value_error("n_samples", "at least 2, for the error of the estimate", n_samples)
    check_positive_int("max_products", max_products)
    is_zero = product.check_diag_reg(diag_reg) == 0.0
    if product.is_dense_cheaper() or (is_zero and _fits(product)):
        product = product.formed()
        values = torch.linalg.eigvalsh(product.to_dense()) + product.shift(diag_reg)
        if float(values[0]) <= product.size * product.eps * float(values[-1].abs()):
            raise _singular(product, diag_reg, float(values[-1]))
        return TraceEstimate(float(values.log().sum()), 0.0)
    if is_zero:
        raise value_error(
            "diag_reg",
            "positive for a kernel whose matrix does not fit in memory",
            describe(diag_reg),
            "The smallest eigenvalues decide over the determinant, and products do not find them.",
        )
    shift = product.shift(diag_reg)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    left = sketch(product, shift, _SHARE, n_samples, source)
    largest = float(left.values[0]) if len(left.values) else 0.0
    if shift <= product.size * product.eps * largest:
        raise _singular(product, diag_reg, largest)
    others = product.size - len(left.values)
    rest = shift + max(product.trace - float(left.values.sum()), 0.0) / max(others, 1)
    known = float((left.values + shift).log().sum()) + others * math.log(rest)

    def multiply(v: Tensor) -> Tensor:
        half = left.power(-0.5, shift, rest, v)
        return left.power(-0.5, shift, rest, product.multiply(half) + shift * half)

    z = signs(n_samples, product.size, source).T.cpu()
    quadrature = LanczosQuadrature(multiply, z, max_products)
    before = math.inf
    while True:
        more = quadrature.advance()
        nodes, weights = quadrature.rule()
        counts = weights > torch.finfo(weights.dtype).eps  # the others come from rounding
        if bool((counts & (nodes <= 0)).any()):
            raise _singular(product, diag_reg, largest)
        found = mean_and_error(
            product.size * torch.where(counts, weights * nodes.log(), 0.0).sum(1)
        )
        change = abs(found.estimate - before)
        if quadrature.steps == product.size:
            change = 0.0
        allowed = max(_SHARE * found.standard_error, 1e-12 * abs(found.estimate))
        if change <= allowed:
            return TraceEstimate(known + found.estimate, found.standard_error + change)
        if not more:
            raise RuntimeError(
                f"The estimate of the logarithm of the determinant still changed by {change:.2g} "
                f"after {max_products} products of each vector, where its standard error is "
                f"{found.standard_error:.2g}: raise `max_products` or `diag_reg`."
            )
        before = found.estimate


def _fits(product: SymmetricProduct) -> bool:
    return 4 * 8 * product.size**2 <= budget(torch.device("cpu"))


def _singular(product: SymmetricProduct, diag_reg: object, largest: float) -> Exception:
    """Return the error for a determinant that is 0 to working precision."""
    floor = product.size * product.eps * largest
    remedy = "Raise it."
    if product.dtype != torch.float64:
        remedy = "Raise it, or make the operator with dtype=torch.float64."
    return value_error(
        "diag_reg",
        f"such that no eigenvalue of Θ + μ is below its rounding, {floor:.2g}: the determinant is "
        "0 to working precision, and its logarithm -∞",
        describe(diag_reg),
        remedy,
    )
