"""A low-rank approximation of a kernel, from its product with a few random vectors.

For a test matrix Ω `[D, r]` the Nyström approximation of a positive semidefinite Θ is

    Θ⟨Ω⟩ = (ΘΩ) (Ωᵀ Θ Ω)⁺ (ΘΩ)ᵀ = U diag(λ̂) Uᵀ ≼ Θ,

which has the range of ΘΩ and approximates the largest eigenvalues of Θ. As a preconditioner it
removes these eigenvalues, on which the convergence of conjugate gradients and of quadratures
depends (Frangella, Tropp and Udell, "Randomized Nyström preconditioning", 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...memory import budget
from ._symmetric_product import SymmetricProduct

_FIRST = 8  # vectors in the first sketch; each further sketch doubles their number
_MOST = 256


@dataclass(frozen=True)
class Nystroem:
    """The approximation `U diag(λ̂) Uᵀ`.

    Attributes:
        values: λ̂ `[r]`, positive and descending.
        vectors: U `[D, r]`, with orthonormal columns.
        products: The number of vectors that were multiplied by Θ.
    """

    values: Tensor
    vectors: Tensor
    products: int

    @property
    def smallest(self) -> float:
        """λ̂_r, an estimate of the largest remaining eigenvalue; 0 for a zero matrix."""
        return float(self.values[-1]) if len(self.values) else 0.0

    def power(self, exponent: float, shift: float, rest: float, v: Tensor) -> Tensor:
        """Return `P^exponent v` with `P = U (λ̂ + shift) Uᵀ + rest · (1 - U Uᵀ)`."""
        inner = self.vectors.T @ v
        outside = math.pow(rest, exponent)
        scale = (self.values + shift).pow(exponent) - outside
        return outside * v + self.vectors @ (scale[:, None] * inner)


def sketch(
    product: SymmetricProduct,
    shift: float,
    tolerance: float,
    columns: int,
    generator: torch.Generator,
) -> Nystroem:
    """Return an approximation of a rank at which more vectors would not reduce the work.

    With κ = 1 + λ̂_r/shift, conjugate gradients and quadratures need about ½ √κ ln(2/tolerance)
    products of each of `columns` vectors to reach their relative tolerance. If these are fewer than
    the vectors that the sketch has multiplied, more vectors cannot reduce the total.
    """
    size = product.size
    fitting = budget(torch.device("cpu")) // (4 * 8 * size)  # Ω, ΘΩ, U, and room to work in
    most = max(1, min(_MOST, size // 2, fitting))
    omega = y = torch.empty(size, 0, dtype=torch.float64, device="cpu")
    while True:
        count = min(most, max(_FIRST, 2 * omega.shape[1])) - omega.shape[1]
        drawn = torch.randn(
            size, count, generator=generator, device=generator.device, dtype=torch.float64
        ).cpu()
        drawn = drawn - omega @ (omega.T @ drawn)
        more = torch.linalg.qr(drawn)[0]
        omega, y = torch.cat([omega, more], dim=1), torch.cat([y, product.multiply(more)], dim=1)
        found = _approximation(omega, y, product.eps)
        rank, left = omega.shape[1], found.smallest
        if rank == most or len(found.values) < rank:
            return found
        if shift:
            steps = 0.5 * math.sqrt(left / shift) * math.log(2 / tolerance)
            if columns * steps <= rank:
                return found


def _approximation(omega: Tensor, y: Tensor, eps: float) -> Nystroem:
    """Return the approximation for Ω with orthonormal columns and `y = ΘΩ`.

    Directions in which ΩᵀΘΩ is as small as rounding errors are left out, since the formula divides
    by it.
    """
    inner = omega.T @ y
    h, v = torch.linalg.eigh(0.5 * (inner + inner.T))
    keep = h > len(omega) * eps * h[-1].clamp_min(0.0)
    root = y @ (v[:, keep] / h[keep].sqrt())
    u, s, _ = torch.linalg.svd(root, full_matrices=False)
    return Nystroem(s.square(), u, omega.shape[1])
