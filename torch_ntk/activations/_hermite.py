"""Hermite coefficients of g(√q z) for a standard Gaussian z, by quadrature in one dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

# The nodes of the quadrature in each panel. Panels end at multiples of `_PANEL` in z, due to the
# Gaussian and the polynomials, and at `_EDGES_IN_X` in x = √q z, where most activations bend.
# They also end at the kinks of the activation.
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))
_PANEL = 0.5
_REACH = 12.0
_EDGES_IN_X = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
# The numbers of variances and of polynomials whose values at all nodes are in memory at once, 4 MB.
_ROWS_AT_ONCE = 24
_DEGREES = 32

Moments = Callable[[Tensor], Tensor]
"""Values `[G, ...]` of the functions g_1..g_G at the entries of a tensor `[...]`."""


def hermite_moments(
    q: Tensor, moments: Moments, kinks: Tensor, terms: int, *, finer: bool = False
) -> Tensor:
    """Return E[g(√q z) h_j(z)] for j < terms, with the orthonormal Hermite polynomials h_j.

    Args:
        q: Positive variances `[M]`, float64.
        moments: The functions g.
        kinks: The points where the functions or their derivatives jump; panels end there.
        terms: The number of polynomials.
        finer: Whether to use panels of half the width that reach out to 20 standard deviations.

    Returns:
        The coefficients `[G, M, terms]`.
    """
    parts = [_moments(rows, moments, kinks, terms, finer) for rows in torch.split(q, _ROWS_AT_ONCE)]
    return torch.cat(parts, dim=1)


def _moments(q: Tensor, moments: Moments, kinks: Tensor, terms: int, finer: bool) -> Tensor:
    reach, panel = (20.0, _PANEL / 2) if finer else (_REACH, _PANEL)
    in_z = torch.arange(round(reach / panel) + 1, dtype=q.dtype, device=q.device) * panel
    in_x = torch.tensor(_EDGES_IN_X, dtype=q.dtype, device=q.device)
    in_x = torch.cat([in_x, kinks.to(q.device).abs()])
    root = q.sqrt().unsqueeze(-1)
    edges = torch.cat([in_z.expand(len(q), -1), (in_x / root).clamp(max=reach)], dim=-1)
    edges = edges.sort(dim=-1).values
    centre = (edges[:, 1:] + edges[:, :-1]).unsqueeze(-1) / 2
    width = edges.diff(dim=-1).unsqueeze(-1) / 2
    z = (centre + width * _NODES.to(q.device)).flatten(1)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    weight = (width * _WEIGHTS.to(q.device)).flatten(1) * density
    # h_j is even or odd, as j is, so nodes z > 0 suffice. The value at 0 contributes to h_0 only;
    # it is subtracted first, so that other coefficients keep small relative errors for small q.
    right, left = moments(root * z), moments(-root * z)
    middle = (right[..., :1] + left[..., :1]) / 2
    parts = [((p * weight).transpose(0, 1)) for p in (right + left - 2 * middle, right - left)]
    result = q.new_empty(len(right), len(q), terms)
    for first, h in _hermite_polynomials(z, terms):
        last = first + len(h)
        for parity, part in enumerate(parts):  # `first` is even
            made = part @ h[parity::2].permute(1, 2, 0)
            result[..., first + parity : last : 2] = made.transpose(0, 1)
    result[..., :1] += middle
    return result


def _hermite_polynomials(z: Tensor, terms: int) -> Iterator[tuple[int, Tensor]]:
    """Yield h_0 … h_{terms-1} at `z` `[M, Z]`, some degrees at a time.

    Each item is the first degree and the values `[degrees, M, Z]`. All items use the same memory.
    """
    h = z.new_empty(_DEGREES + 2, *z.shape)  # the last two degrees of the item before come first
    h[2] = 1.0
    for first in range(0, terms, _DEGREES):
        if first:
            h[:2] = h[_DEGREES:]
        count = min(_DEGREES, terms - first)
        for n in range(0 if first else 1, count):
            # √j h_j = z h_{j-1} - √(j-1) h_{j-2}
            j, to = first + n, h[n + 2]
            torch.mul(z, h[n + 1], out=to)
            if j > 1:
                to.sub_(h[n], alpha=math.sqrt(j - 1))
            to.mul_(1 / math.sqrt(j))
        yield first, h[2 : 2 + count]
