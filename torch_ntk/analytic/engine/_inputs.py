"""The covariances of the network's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._state import State, zero

# Distances below this share of the norms are computed again from the differences themselves: the
# form ‖a‖² + ‖b‖² - 2ab, a matrix product, leaves them a relative error of eps over the share.
_CLOSE = {torch.float32: 1e-2, torch.float64: 1e-4}
# With so few channels the differences themselves cost no more than the product.
FEW = 8
# Entries of the differences that are held at once.
_MOST = 1 << 24


def input_state(
    x1: Tensor,
    x2: Tensor,
    *,
    distance: bool,
    full: bool,
    ntk: bool,
    same: bool,
    norms: tuple[Tensor, Tensor] | None = None,
) -> State:
    """The value of known features for a block of pairs.

    Args:
        x1: `[n1, C, P, Q]`.
        x2: `[n2, C, P, Q]`.
        distance: Whether to hold distances.
        full: Whether to hold pairs of positions.
        ntk: Whether Θ is wanted; it is 0.
        same: Whether to pair image n of x1 with image n of x2 only, as `[n, 1, ...]`.
        norms: With distances, the means over channels of the squares, `[n1, 1, P, Q]` and
            `[1, n2, P, Q]`.
    """
    theta = zero(x1) if ntk else None
    if full:
        letters = "ncpq,ncrs->npqrs" if same else "ncpq,mcrs->nmpqrs"
        k = torch.einsum(letters, x1, x2) / x1.shape[1]
        return State(k.unsqueeze(1) if same else k, theta, False, True)
    if not distance:
        return State(products(x1, x2) / x1.shape[1], theta, False, False)
    assert norms is not None
    return State(_distances(x1, x2, norms), theta, True, False)


def products(x1: Tensor, x2: Tensor) -> Tensor:
    """`[n1, n2, P, Q]`, the sum over channels of the products at equal positions."""
    if x1.shape[2] == x1.shape[3] == 1:
        return (x1.flatten(1) @ x2.flatten(1).T)[:, :, None, None]
    return torch.einsum("ncpq,mcpq->nmpq", x1, x2)


def _distances(x1: Tensor, x2: Tensor, norms: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over channels of the squared differences, accurate for nearly equal inputs."""
    channels = x1.shape[1]
    if channels <= FEW:
        total = torch.zeros((), dtype=x1.dtype, device=x1.device)
        for c in range(channels):
            total = total + (x1[:, None, c] - x2[None, :, c]) ** 2
        return total / channels
    d = (norms[0] + norms[1] - products(x1, x2) * (2 / channels)).clamp(min=0)
    at, exact = close_pairs(d.detach(), x1, x2, norms)
    return d if at is None else d.index_put(at, exact)


def close_pairs(
    d: Tensor, x1: Tensor, x2: Tensor, norms: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, ...] | None, Tensor]:
    """Where distances are too small to have come from products, and what they are.

    Returns:
        Indices into `d` (None if there are none), and the means of the squared differences.
    """
    share = _CLOSE[d.dtype]
    # One pass in place of four where nothing is near, as mostly.
    if bool(d.amin() >= share * (norms[0].amax() + norms[1].amax())):
        return None, d.new_zeros(0)
    close = (d < norms[0] * share + norms[1] * share).nonzero()
    if not len(close):
        return None, d.new_zeros(0)
    exact = [
        (x1[n, :, p, q] - x2[m, :, p, q]).square().mean(1)
        for n, m, p, q in (
            part.unbind(1) for part in torch.split(close, max(1, _MOST // x1.shape[1]))
        )
    ]
    return tuple(close.unbind(1)), torch.cat(exact)
