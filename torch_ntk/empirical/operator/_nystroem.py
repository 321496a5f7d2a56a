"""A kernel's largest eigenvalues, roughly, from one product with a few random vectors.

For a test matrix Ω `[D, r]` the Nyström approximation of a positive semidefinite Θ is

    Θ⟨Ω⟩ = (ΘΩ) (Ωᵀ Θ Ω)⁺ (ΘΩ)ᵀ = U diag(λ̂) Uᵀ ≼ Θ,

the best one from below whose range is that of ΘΩ. With it, conjugate gradients and quadratures see
a matrix whose largest eigenvalues have been taken out (Frangella, Tropp and Udell, "Randomized
Nyström preconditioning", 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...memory import budget
from ._symmetric_product import SymmetricProduct

_FIRST = 8  # vectors of the first sketch; each further one doubles their number
_MOST = 256


@dataclass(frozen=True)
class Nystroem:
    """`U diag(λ̂) Uᵀ`, and what takes its place on the complement of U.

    Attributes:
        values: λ̂ `[r]`, positive, descending.
        vectors: U `[D, r]`, orthonormal.
        products: How many vectors were multiplied for it.
    """

    values: Tensor
    vectors: Tensor
    products: int

    @property
    def smallest(self) -> float:
        """λ̂_r, about the largest eigenvalue of what is left; 0 of a zero matrix."""
        return float(self.values[-1]) if len(self.values) else 0.0

    def power(self, exponent: float, shift: float, rest: float, v: Tensor) -> Tensor:
        """`P^exponent v` with `P = U (λ̂ + shift) Uᵀ + rest · (1 - U Uᵀ)`."""
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
    """An approximation of as many vectors as pay for themselves.

    With κ = 1 + λ̂_r/shift, conjugate gradients and quadratures then take no more than about
    ½ √κ ln(2/tolerance) products of each column: as soon as these are fewer than the vectors that
    have been multiplied, more vectors cannot help.

    Args:
        product: Θ.
        shift: What is added to its diagonal.
        tolerance: Relative, of what is computed with the approximation.
        columns: Vectors that will be multiplied in every step.
        generator: Of the random vectors.
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
    """From Ω with orthonormal columns and ΘΩ.

    Directions in which ΩᵀΘΩ is no more than rounding are left out: they would be divided by it.
    """
    inner = omega.T @ y
    h, v = torch.linalg.eigh(0.5 * (inner + inner.T))
    keep = h > len(omega) * eps * h[-1].clamp_min(0.0)
    root = y @ (v[:, keep] / h[keep].sqrt())
    u, s, _ = torch.linalg.svd(root, full_matrices=False)
    return Nystroem(s.square(), u, omega.shape[1])
