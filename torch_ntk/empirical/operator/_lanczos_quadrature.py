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

_FEWEST = 5  # the smallest number of steps between two tests of convergence


class LanczosQuadrature:
    """Quadrature rules for several vectors z, the columns of a float64 matrix, that share products.

    Each new vector is orthogonalized against the whole basis, which is stored: without that, the
    method finds copies of known eigenvalues after as few as twenty steps on a kernel. If the basis
    does not fit in memory, a `ValueError` is raised.
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
        # `[K, m, D]`; the operating system provides its memory only when it is written.
        self._basis = torch.empty(z.shape[1], self._most, len(z), dtype=z.dtype, device=z.device)
        self._next = (z / z.norm(dim=0)).T
        self._alpha: list[Tensor] = []
        self._beta: list[Tensor] = []

    @property
    def steps(self) -> int:
        """The number of steps so far, which is the number of nodes."""
        return len(self._alpha)

    def advance(self) -> bool:
        """Make a quarter as many steps as before; return whether more are possible."""
        for _ in range(max(_FEWEST, self.steps // 4)):
            if self.steps == self._most:
                break
            self._step()
        return self.steps < self._most

    def _step(self) -> None:
        q = self._next
        self._basis[:, self.steps] = q
        w = self._multiply(q.T).T
        self._alpha.append((q * w).sum(1))
        known, size = self._basis[:, : self.steps], w.norm(dim=1)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            inner = torch.bmm(known, w[:, :, None])
            w = w - torch.bmm(inner.mT, known)[:, 0]
        beta = w.norm(dim=1)
        # The Krylov space of z is exhausted: the rest is rounding, and has no weight in the rule.
        done = beta <= w.shape[1] * torch.finfo(w.dtype).eps * size
        self._beta.append(torch.where(done, 0.0, beta))
        self._next = torch.where(done[:, None], 0.0, w / beta[:, None])

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return the nodes and weights, `[K, m]` each; a vector's weights sum to 1."""
        alpha = torch.stack(self._alpha, dim=1)
        tridiagonal = torch.diag_embed(alpha)
        if self.steps > 1:
            beta = torch.stack(self._beta[:-1], dim=1)
            tridiagonal = tridiagonal + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        return nodes, vectors[:, 0].square()
