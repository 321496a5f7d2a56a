r"""Quadrature for `zᵀ f(A) z` by the Lanczos method.

m steps of the Lanczos method from z make a tridiagonal matrix T, whose eigenvalues θ_j are the
nodes, and whose eigenvectors' first entries squared are the weights w_j, of Gauss's rule for the
spectral measure of A seen from z:

    zᵀ f(A) z / ‖z‖² ≈ Σ_j w_j f(θ_j),     exact for polynomials f of degree up to 2m - 1

(Golub and Meurant, "Matrices, moments and quadrature", 1994). For z of random signs the expectation
of zᵀ f(A) z is tr f(A) (Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
quadrature", 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._checks import value_error
from ...memory import budget, size_in_words

_EVERY = 5  # steps between two looks at whether more are needed


class LanczosQuadrature:
    """Rules for several vectors z at once, which share products.

    The basis is kept and orthogonalized anew in every step: without that, the method finds copies
    of eigenvalues that it has found before, after as few as twenty steps on a kernel.

    Args:
        multiply: `A v` of a matrix `[D, K]`.
        z: Vectors `[D, K]`, float64.
        max_steps: m is at most so many, and at most D.

    Raises:
        ValueError: The basis does not fit in memory.
    """

    def __init__(self, multiply: Callable[[Tensor], Tensor], z: Tensor, max_steps: int) -> None:
        self._multiply, self._most = multiply, min(max_steps, len(z))
        need, free = 8 * z.numel() * self._most, budget(z.device)
        if need > free:
            raise value_error(
                "n_samples",
                f"fewer than {z.shape[1]}: at most {size_in_words(free)} may be used",
                f"{z.shape[1]} bases of {self._most} vectors of {len(z)} entries, "
                f"{size_in_words(need)} together",
                "Or lower `max_products`.",
            )
        self._basis = [z / z.norm(dim=0)]
        self._alpha: list[Tensor] = []
        self._beta: list[Tensor] = []

    @property
    def steps(self) -> int:
        """M so far."""
        return len(self._alpha)

    def advance(self) -> bool:
        """Make some steps; whether more are possible."""
        for _ in range(_EVERY):
            if self.steps == self._most:
                return False
            self._step()
        return self.steps < self._most

    def _step(self) -> None:
        q = self._basis[-1]
        w = self._multiply(q)
        self._alpha.append((q * w).sum(0))
        size = w.norm(dim=0)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            for v in self._basis:
                w = w - v * (v * w).sum(0)
        beta = w.norm(dim=0)
        # The space of z is exhausted: what is left is rounding, and has no weight in the rule.
        done = beta <= len(w) * torch.finfo(w.dtype).eps * size
        beta = torch.where(done, 0.0, beta)
        self._beta.append(beta)
        self._basis.append(torch.where(done, 0.0, w / beta))

    def rule(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights `[K, m]`; the weights of a vector sum to 1."""
        alpha = torch.stack(self._alpha, dim=1)
        tridiagonal = torch.diag_embed(alpha)
        if self.steps > 1:
            beta = torch.stack(self._beta[:-1], dim=1)
            tridiagonal = tridiagonal + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        return nodes, vectors[:, 0].square()
