"""The dual functions of a Gabor function, a sine wave in a Gaussian window."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dual import DualActivation


class DualGabor(DualActivation):
    """φ(x) = exp(-x²) sin x.

    With D = (1 + 2 q1)(1 + 2 q2) - 4k², S = 1 + q1 + q2, N± = S ± 2k and e± = exp(N±/(2D) - 1/2),

        κ  = (e₊ - e₋) / (2√D),
        κ̇ = [(e₊ + e₋)/D + (4k/D)(e₊ (1 + N₊/D) - e₋ (1 + N₋/D))] / (2√D).

    Derivation: for z = (u, v) of covariance Σ, E exp(-zᵀz + i tᵀz) is
    det(1 + 2Σ)^(-1/2) exp(-½ tᵀ (Σ⁻¹ + 2)⁻¹ t), and (Σ⁻¹ + 2)⁻¹ = ½ (1 - (1 + 2Σ)⁻¹); with
    t = (1, ∓1) and 2 sin u sin v = cos(u - v) - cos(u + v) this is κ. κ̇ is ∂κ/∂k.
    """

    name = "gabor"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] and E[φ'(u)²]: `pair` at k = q1 = q2 = q."""
        return self.pair(q, q, q)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        s = 1 + (q1 + q2)
        d = (1 + 2 * (q1 + q2)) + 4 * (q1 * q2 - k * k)
        inverse = 1 / d
        root = torch.rsqrt(d) / 2
        n_plus, n_minus = (s + 2 * k) * inverse, (s - 2 * k) * inverse
        # The factor exp((N₊ + N₋)/(4D) - 1/2) is taken out of e₊ and e₋.
        mean = torch.exp(s * inverse / 2 - 0.5)
        up, down = torch.exp(k * inverse), torch.exp(-k * inverse)
        value = mean * root * 2 * torch.sinh(k * inverse)
        bend = 4 * k * (up * (1 + n_plus) - down * (1 + n_minus))
        return value, mean * root * inverse * (up + down + bend)
