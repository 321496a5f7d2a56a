"""The dual functions of ReLU, leaky ReLU, the absolute value, and all a₊ max(x,0) + a₋ min(x,0)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._angle import SMALLEST_SQUARED_SINE, acute_angle
from ._dual import DualActivation
from ._formula import Form, Formula

# Products of two variances in this range have all their digits: they do not under- or overflow.
_RANGE = {
    dtype: (torch.finfo(dtype).tiny / torch.finfo(dtype).eps, torch.finfo(dtype).max)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}

# Below this angle sin θ - θ cos θ is summed as a series; above, the subtraction is accurate.
_SERIES_BELOW = 0.25
# (-1)^(m+1) 2m / (2m+1)!, the coefficients of θ^(2m+1) from m = 5 down to 1.
_SERIES = (1 / 3991680, -1 / 45360, 1 / 840, -1 / 30, 1 / 3)


class DualRectifier(DualActivation):
    """φ(x) = a₊ x for x > 0 and a₋ x for x < 0.

    With r = √(q1 q2), cos θ = k / r and B = (a₊ - a₋)² / (2π),

        κ̇ = a₊ a₋ + B (π - θ),        κ = k κ̇ + B r sin θ,

    which for ReLU (1, 0) is κ = r (sin θ + (π - θ) cos θ) / (2π) and κ̇ = (π - θ) / (2π), the
    arc-cosine kernels of order 1 and 0 (Cho and Saul 2009, "Kernel Methods for Deep Learning").

    Where a variance is 0, κ = 0 and κ̇ = ((a₊ + a₋) / 2)², the value at correlation 0; a variance
    below the normal range (about 1e-38 in float32, 1e-308 in float64) counts as 0 in κ̇.
    Where u = ±v, the derivative of κ̇ by k, which is infinite there, is given as 0.

    Args:
        positive: The slope a₊ on the positive side.
        negative: The slope a₋ on the negative side.
        name: The name in messages.

    Example:
        >>> relu = DualRectifier(1.0, 0.0, "relu")
        >>> one = torch.ones(1)
        >>> relu.pair(one, one, one)
        (tensor([0.5000]), tensor([0.5000]))
    """

    def __init__(self, positive: float, negative: float, name: str) -> None:
        self.name = name
        self.positive = positive
        self.negative = negative
        self._product = positive * negative
        self._mean_square = (positive**2 + negative**2) / 2
        self._at_zero = ((positive + negative) / 2) ** 2
        self._kink_factor = (positive - negative) ** 2 / (2 * math.pi)

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = q (a₊² + a₋²)/2 and E[φ'(u)²] = (a₊² + a₋²)/2."""
        value = self._mean_square * q
        slope = torch.full_like(q, self._mean_square)
        return value, slope.masked_fill(_is_zero(q), self._at_zero)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        safe1, root1 = positive_and_root(q1)
        safe2, root2 = positive_and_root(q2)
        # √(q q) is exactly q, and √q √q is not. So equal arguments have correlation 1, except where
        # the product leaves the range of the type and √q √q is used.
        product = safe1 * safe2
        least, most = _RANGE[k.dtype]
        inside = (product > least) & (product < most)
        r = torch.where(inside, product, 1.0).sqrt()
        r = torch.where(inside, r, safe1.sqrt() * safe2.sqrt())
        c = (k / r).clamp(-1.0, 1.0)
        s = ((1.0 - c) * (1.0 + c)).clamp(min=SMALLEST_SQUARED_SINE).sqrt()
        slope = torch.atan2(s, -c) * self._kink_factor
        if self._product:
            slope = slope + self._product
        return k * slope + (root1 * self._kink_factor) * root2 * s, slope

    def fused(self, form: Form) -> Formula:
        """Return statements for the formulas of `pair` or of `pair_from_distance`.

        The terms of an image are √q and 1/√q. Unlike in `pair_from_distance`, sin θ - θ cos θ is
        computed by a subtraction. Its error, of the order of eps θ, has the effect of an error of
        the order of eps in the angle.
        """
        numbers = (self._kink_factor, self._product, self._mean_square)
        angle = acute_angle(form.double)
        if not form.distance:
            lines = (
                "c = k0 * (a1 * b1)",
                "x = min(abs(c), 1.0)",
                "e = 1.0 - x",
                *angle,
                "slope = p0 * (acute if c < 0.0 else 3.141592653589793 - acute) + p1",
                "k = k0 * slope + (a0 * b0) * (p0 * sine)",
                "t = t0 * slope",
            )
            return Formula(lines, numbers, roots)
        rounding = 16 * (2.0**-52 if form.double else 2.0**-23)
        lines = (
            "r = a0 * b0",
            "scale = 0.5 * (a1 * b1)",
            "between = a0 - b0",
            # Where a variance is 0, the angle is π/2 by convention. 1 - cos θ is set to 0 or 2
            # if it differs from them by rounding only; see `_parallel_or_opposite`.
            "excess = (k0 - between * between) * scale if r > 0.0 else 1.0",
            f"rounding = {rounding!r} * (k0 * scale)",
            "excess = 0.0 if excess < rounding else excess",
            "excess = 2.0 if 2.0 - excess < rounding else excess",
            "excess = min(max(excess, 0.0), 2.0)",
            "obtuse = excess > 1.0",
            "e = 2.0 - excess if obtuse else excess",
            "x = 1.0 - e",
            *angle,
            "angle = 3.141592653589793 - acute if obtuse else acute",
            "lag = sine - angle * (1.0 - excess)",
            "k = max(p2 * k0 - 2.0 * p0 * r * lag, 0.0)",
            "t = t0 * (p2 - p0 * angle)",
        )
        return Formula(lines, numbers, roots)

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(φ(u) - φ(v))²] and κ̇, as accurate relative to d as d itself.

        With 1 - cos θ = (d - (√q1 - √q2)²) / (2r),

            E[(φ(u) - φ(v))²] = d (a₊² + a₋²)/2 - 2 B r (sin θ - θ cos θ),

        where the last term is of the order of θ³ and is summed as a series for small θ.
        """
        _, root1 = positive_and_root(q1)
        _, root2 = positive_and_root(q2)
        r = root1 * root2
        positive = r > 0
        twice = 2 * torch.where(positive, r, 1.0)
        excess = (d - (root1 - root2).square()) / twice
        excess = _parallel_or_opposite(torch.where(positive, excess, 1.0), d / twice)
        near = excess.clamp(min=SMALLEST_SQUARED_SINE).sqrt()
        far = (2.0 - excess).clamp(min=SMALLEST_SQUARED_SINE).sqrt()
        theta = 2 * torch.atan2(near, far)
        square = theta.square()
        series = torch.full_like(theta, _SERIES[0])
        for coefficient in _SERIES[1:]:
            series = series * square + coefficient
        lag = torch.where(
            theta < _SERIES_BELOW,
            series * square * theta,
            near * far - theta * (1.0 - excess),
        )
        linear = self._mean_square * d
        distance = (linear - (2 * self._kink_factor) * r * lag).clamp(min=0.0)
        # At d = 0 `clamp` would lose the derivative.
        return torch.where(d > 0, distance, linear), self._mean_square - self._kink_factor * theta


def _parallel_or_opposite(excess: Tensor, size: Tensor) -> Tensor:
    """Return 1 - cos θ, set to 0 or 2 where it differs from them by rounding only.

    So an input and its multiples are exactly parallel in every layer, while rounding errors would
    put an angle of 1e-8 between them.

    Args:
        excess: 1 - cos θ, which was computed as a difference.
        size: The minuend of that difference, which determines the rounding error.
    """
    rounding = (16 * torch.finfo(excess.dtype).eps) * size
    excess = torch.where(excess < rounding, 0.0 * excess, excess)
    return torch.where(2.0 - excess < rounding, 2.0, excess).clamp(0.0, 2.0)


def _is_zero(q: Tensor) -> Tensor:
    """Return where a variance is 0 or has lost digits to underflow; False for NaN."""
    return q <= torch.finfo(q.dtype).tiny


def positive_and_root(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return q with variances of 0 replaced by 1, and √q; both have derivative 0 at q = 0."""
    zero = _is_zero(q)
    positive = q.masked_fill(zero, 1.0)
    return positive, positive.sqrt().masked_fill(zero, 0.0)


def roots(variances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the terms √q and 1/√q of a formula; both are 0 where the variance is 0."""
    (q,) = variances
    positive, root = positive_and_root(q)
    return root, (1.0 / positive.sqrt()).masked_fill(_is_zero(q), 0.0)
