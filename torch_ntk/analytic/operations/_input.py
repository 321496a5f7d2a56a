"""The network's inputs, and their covariances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._state import State, Variances, zero

# With at most so many channels, squared differences cost no more than a matrix product.
FEW_CHANNELS = 8
# Distances below this fraction of the squared norms are computed again from the differences: in the
# form ‖a‖² + ‖b‖² - 2ab, a matrix product, their relative error is eps divided by the fraction.
CLOSE = {torch.float32: 1e-2, torch.float64: 1e-4}
# The most entries of differences that are in memory at once.
_MOST_DIFFERENCES = 1 << 24


@dataclass(frozen=True)
class Input:
    """Known features `[N, C, P, Q]`: `K = (1/C) Σ_c x_c(p) x'_c(p')`, `Θ = 0`.

    Attributes:
        x1: The features of the images of the kernel's rows.
        x2: The features of the images of its columns; None if they are those of the rows.
    """

    x1: Tensor
    x2: Tensor | None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """The features of the images of the rows and of the columns."""
        return self.x1, self.x1 if self.x2 is None else self.x2

    def variance(self, side: int, images: slice) -> Tensor:
        """Return `K(x, x)` at each position, `[n, P, Q]`, for images of x1 (side 0) or x2 (1)."""
        return self.both[side][images].square().mean(1)

    def pairs(self, rows: slice, columns: slice, full: bool, ntk: bool) -> State:
        """Return the covariances of a block of pairs, at the same or at all pairs of positions."""
        a, b = self.both[0][rows], self.both[1][columns]
        k = torch.einsum("ncpq,mcrs->nmpqrs", a, b) if full else products(a, b)
        return State(k / a.shape[1], zero(k) if ntk else None, False, full)

    def distances(self, rows: slice, columns: slice, variances: Variances, ntk: bool) -> State:
        """Return the distances of a block of pairs, accurate for nearly equal images."""
        a, b = self.both[0][rows], self.both[1][columns]
        d = _distances(a, b, variances)
        return State(d, zero(d) if ntk else None, True, False)

    def within(self, side: int, images: slice) -> State:
        """Return the covariances between all positions of each image, `[n, 1, P, Q, P, Q]`."""
        x = self.both[side][images]
        k = torch.einsum("ncpq,ncrs->npqrs", x, x) / x.shape[1]
        return State(k.unsqueeze(1), None, False, True)


def products(x1: Tensor, x2: Tensor) -> Tensor:
    """Return the sum over channels of the products at the same position, `[n1, n2, P, Q]`."""
    if x1.shape[2] == x1.shape[3] == 1:
        return (x1.flatten(1) @ x2.flatten(1).T)[:, :, None, None]
    return torch.einsum("ncpq,mcpq->nmpq", x1, x2)


def _distances(x1: Tensor, x2: Tensor, variances: Variances) -> Tensor:
    """Return the means over channels of the squared differences, `[n1, n2, P, Q]`."""
    channels = x1.shape[1]
    if channels <= FEW_CHANNELS:
        total = torch.zeros((), dtype=x1.dtype, device=x1.device)
        for c in range(channels):
            total = total + (x1[:, None, c] - x2[None, :, c]) ** 2
        return total / channels
    d = (variances[0] + variances[1] - products(x1, x2) * (2 / channels)).clamp(min=0)
    close = close_pairs(d.detach(), x1, x2, variances)
    return d if close is None else d.index_put(*close)


def close_pairs(
    d: Tensor, x1: Tensor, x2: Tensor, variances: Variances
) -> tuple[tuple[Tensor, ...], Tensor] | None:
    """Find distances that are too small to be computed from products, and compute them again.

    Returns:
        Their indices in `d`, and the means of the squared differences there; None if there are
        no such distances.
    """
    share = CLOSE[d.dtype]
    # Usually no distance is small, which one pass over `d` shows in place of four.
    if bool(d.amin() >= share * (variances[0].amax() + variances[1].amax())):
        return None
    close = (d < variances[0] * share + variances[1] * share).nonzero()
    if not len(close):
        return None
    exact = [
        (x1[n, :, p, q] - x2[m, :, p, q]).square().mean(1)
        for n, m, p, q in (
            part.unbind(1) for part in torch.split(close, max(1, _MOST_DIFFERENCES // x1.shape[1]))
        )
    ]
    return tuple(close.unbind(1)), torch.cat(exact)
