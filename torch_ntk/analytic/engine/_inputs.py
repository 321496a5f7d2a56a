"""The covariances of the network's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._state import State, zero

# Distances below this share of the norms are computed again from the differences themselves: the
# form ‖a‖² + ‖b‖² - 2ab, a matrix product, leaves them a relative error of eps over the share.
_CLOSE = {torch.float32: 1e-2, torch.float64: 1e-4}
# With so few channels the differences themselves cost no more than the product.
_FEW = 8
# Entries of the differences that are held at once.
_MOST = 1 << 24


def input_state(
    x1: Tensor, x2: Tensor, *, distance: bool, full: bool, ntk: bool, same: bool
) -> State:
    """The value of known features for a block of pairs.

    Args:
        x1: `[n1, C, P, Q]`.
        x2: `[n2, C, P, Q]`.
        distance: Whether to hold distances.
        full: Whether to hold pairs of positions.
        ntk: Whether Θ is wanted; it is 0.
        same: Whether to pair image n of x1 with image n of x2 only, as `[n, 1, ...]`.
    """
    theta = zero(x1) if ntk else None
    if full:
        letters = "ncpq,ncrs->npqrs" if same else "ncpq,mcrs->nmpqrs"
        k = torch.einsum(letters, x1, x2) / x1.shape[1]
        return State(k.unsqueeze(1) if same else k, theta, False, True)
    if not distance:
        return State(_covariances(x1, x2), theta, False, False)
    return State(_distances(x1, x2), theta, True, False)


def _covariances(x1: Tensor, x2: Tensor) -> Tensor:
    """`[n1, n2, P, Q]`, the mean over channels of the products at equal positions."""
    if x1.shape[2] == x1.shape[3] == 1:
        return (x1.flatten(1) @ x2.flatten(1).T)[:, :, None, None] / x1.shape[1]
    return torch.einsum("ncpq,mcpq->nmpq", x1, x2) / x1.shape[1]


def _distances(x1: Tensor, x2: Tensor) -> Tensor:
    """The mean over channels of the squared differences, accurate for nearly equal inputs."""
    channels = x1.shape[1]
    if channels <= _FEW:
        total = torch.zeros((), dtype=x1.dtype, device=x1.device)
        for c in range(channels):
            total = total + (x1[:, None, c] - x2[None, :, c]) ** 2
        return total / channels
    s1, s2 = (x.square().mean(1) for x in (x1, x2))
    norms = s1[:, None] + s2[None]
    d = norms - 2 * _covariances(x1, x2)
    close = (d < _CLOSE[x1.dtype] * norms).nonzero()
    if not len(close):
        return d
    rows = max(1, _MOST // channels)
    exact = [
        (x1[n, :, p, q] - x2[m, :, p, q]).square().mean(1)
        for n, m, p, q in (part.unbind(1) for part in torch.split(close, rows))
    ]
    return d.clamp(min=0).index_put(tuple(close.unbind(1)), torch.cat(exact))
