"""Estimates of a trace from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class TraceEstimate(NamedTuple):
    """An unbiased estimate of a trace and its standard error."""

    estimate: float
    standard_error: float


def signs(count: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Return random ±1 `[count, size]` in float64; global generators are not used."""
    source = _generator(generator)
    bits = torch.randint(2, (count, size), generator=source, device=source.device)
    return bits.double().mul_(2).sub_(1)


def on_sphere(count: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Return random vectors `[count, size]` of norm `sqrt(size)` with uniform directions."""
    source = _generator(generator)
    normal = torch.randn(count, size, generator=source, device=source.device, dtype=torch.float64)
    return torch.nn.functional.normalize(normal).mul_(size**0.5)


def _generator(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def mean_and_error(values: Tensor) -> TraceEstimate:
    """Return the mean of identically distributed values, and its standard error."""
    error = float(values.std()) / len(values) ** 0.5
    return TraceEstimate(float(values.mean()), error)


def xtrace(product: Callable[[Tensor], Tensor], omega: Tensor) -> TraceEstimate:
    r"""Return the XTrace estimate of Epperly, Tropp and Webber, "XTrace" (2024).

    For every test vector ω_i, the trace is computed exactly on the range of the products Θω_j with
    all *other* vectors, and estimated by ω_i on its complement. The mean over i is unbiased, and
    the faster the spectrum decays, the smaller is its error.

    With Θ[ω_1 … ω_k] = QR, the basis without i is that of Q(I - s_i s_iᵀ), where s_i is the i-th
    column of R⁻ᵀ, normalized: it is orthogonal to all columns of R but the i-th.

    Args:
        product: Returns Θ times a float64 matrix `[D, c]`.
        omega: The test vectors `[D, k]` with k < D.
    """
    y = product(omega)
    q, r = torch.linalg.qr(y)
    spread = torch.linalg.svdvals(r)
    rank = int((spread > spread[0] * 1e-10).sum())
    k = omega.shape[1]
    if rank < k:
        # Any k - 1 of the products span the range of Θ, so that no vector must be left out.
        u, _, _ = torch.linalg.svd(y, full_matrices=False)
        q = u[:, :rank]
        s = torch.zeros(rank, k, dtype=omega.dtype, device=omega.device)
    else:
        eye = torch.eye(k, dtype=r.dtype, device=r.device)
        s = torch.linalg.solve_triangular(r.T, eye, upper=False)
        s = s / s.norm(dim=0)
    z = product(q) if rank else torch.zeros_like(q)
    h = q.T @ z
    w = q.T @ omega
    c = w - s * (s * w).sum(0)
    t = z.T @ omega
    inside = h.diagonal().sum() - (s * (h @ s)).sum(0)
    outside = (omega * y).sum(0) - 2 * (t * c).sum(0) + (c * (h @ c)).sum(0)
    return mean_and_error(inside + outside)
