"""Gradient descent with heavy-ball momentum on one quadratic mode, in closed form for any step.

With step size η, momentum μ and curvature λ, write x = ηλ. The residual r of a mode obeys

    v_{k+1} = μ v_k + λ r_k,   r_{k+1} = r_k - η v_{k+1},   v_0 = 0,

hence r_{k+1} = (1 + μ - x) r_k - μ r_{k-1} with r_1 = (1 - x) r_0. Its characteristic roots
z₁, z₂ have z₁ + z₂ = 1 + μ - x and z₁ z₂ = μ, and with w = 1 - z: w₁ w₂ = x. Two quantities
follow, with U_k = (z₁^{k+1} - z₂^{k+1}) / (z₁ - z₂):

    decay  ρ_k = r_k / r_0 = U_k - μ U_{k-1},
    gain   G_k = (1 - ρ_k) / x = Σ_{j<k} U_j.

Numerically three cases differ. Well separated positive roots (small x): z₁ is near 1, so w₁ is
computed without cancellation and powers are computed as exp(k log1p(-w₁)); this keeps slow modes
exact for any number of steps. Complex roots: powers of √μ and angles. Real roots near each other
or negative: the quotient U is a geometric sum, continued to k + 1 where the roots coincide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def decay_and_gain(x: Tensor, steps: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """ρ and G `[T, D]` for x = ηλ ≥ 0 `[D]` after finite, whole numbers of steps `[T]`."""
    k = steps[:, None]
    decay, gain = _with_momentum(x, k, momentum) if momentum else _without_momentum(x, k)
    # At step 0 nothing has moved: the values are exact there.
    return torch.where(k == 0.0, 1.0, decay), torch.where(k == 0.0, 0.0, gain)


def _with_momentum(x: Tensor, k: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """ρ and G from the roots, by the formula for the case of each x."""
    near = ((1.0 - momentum) / (1.0 + math.sqrt(momentum))) ** 2  # (1 - √μ)²
    far = (1.0 + math.sqrt(momentum)) ** 2
    separated = x < 0.5 * near
    calm = torch.where(separated, x, 0.0)
    decay_calm, gain_calm = _separated(calm, k, momentum, (calm - near) * (calm - far))
    fast = torch.where(separated, near, x)
    decay_fast = _close_or_complex(fast, k, momentum, (fast - near) * (fast - far))
    decay = torch.where(separated, decay_calm, decay_fast)
    return decay, torch.where(separated, gain_calm, (1.0 - decay_fast) / fast)


def _without_momentum(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """ρ = (1 - x)^k."""
    small = x < 0.5
    log = torch.log1p(-torch.where(small, x, 0.0))
    base = torch.where(small, 0.5, 1.0 - x)
    decay = torch.where(small, torch.exp(k * log), torch.pow(base, k))
    slow = torch.where(x == 0.0, k, -torch.expm1(k * log) / x)
    return decay, torch.where(small, slow, (1.0 - decay) / x)


def _separated(x: Tensor, k: Tensor, momentum: float, disc: Tensor) -> tuple[Tensor, Tensor]:
    """ρ and G for well separated real roots 1 ≥ z₁ > z₂ > 0."""
    root = disc.sqrt()
    total = (1.0 - momentum) + x + root
    w1, w2 = 2.0 * x / total, 0.5 * total
    z1 = 1.0 - w1
    z2 = momentum / z1
    log1 = torch.log1p(-w1)
    log2 = math.log(momentum) - log1
    sum1 = torch.where(w1 == 0.0, k, -torch.expm1(k * log1) / w1)
    sum2 = -torch.expm1(k * log2) / w2
    decay = (z1 * w2 * torch.exp(k * log1) - z2 * w1 * torch.exp(k * log2)) / root
    return decay, (z1 * sum1 - z2 * sum2) / root


def _close_or_complex(x: Tensor, k: Tensor, momentum: float, disc: Tensor) -> Tensor:
    """ρ_k for all other roots, from their absolute values and the sign of their sum."""
    half = 0.5 * (1.0 + momentum - x)
    negative = half < 0.0
    last = _quotient(half.abs(), disc, k, momentum)
    before = _quotient(half.abs(), disc, k - 1.0, momentum)
    size = last - momentum * torch.where(negative, -before, before)
    odd = torch.remainder(k, 2.0) == 1.0
    return torch.where(negative & odd, -size, size)


def _quotient(half: Tensor, disc: Tensor, k: Tensor, momentum: float) -> Tensor:
    """U_k for roots half ± √disc/2 with half ≥ 0."""
    n = k + 1.0
    # Complex roots √μ exp(±iθ): U_k = μ^{k/2} sin(nθ)/sin θ.
    angle = torch.atan2(0.5 * (-disc).clamp(min=0.0).sqrt(), half)
    sine = torch.sin(angle)
    turning = torch.where(sine == 0.0, n, torch.sin(n * angle) / sine)
    turning = torch.exp(0.5 * k * math.log(momentum)) * turning
    # Real roots a ≥ b: U_k = a^k (1 - (b/a)^n) / (1 - b/a).
    root = disc.clamp(min=0.0).sqrt()
    larger = half + 0.5 * root
    apart = (root / larger).clamp(max=1.0)
    geometric = torch.where(apart == 0.0, n, -torch.expm1(n * torch.log1p(-apart)) / apart)
    straight = torch.pow(larger, k) * geometric
    return torch.where(disc < 0.0, turning, straight)
