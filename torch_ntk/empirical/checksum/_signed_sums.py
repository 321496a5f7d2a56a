"""`Σ u J` of a block of samples, assembled from factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import SMALL, Call
from ..rules import Use
from ._signs import signs

# The number of vectors by which the gradient of a large weight is multiplied. The product of a
# difference of norm d with each vector has a norm of about d; that both are less than a hundredth
# of it happens in less than one of 10,000 calls.
_VECTORS = 2


@dataclass
class SignedSum:
    """The sum `Σ u J` for one parameter.

    Attributes:
        total: `Σ u J`, the gradient `[p]`; for a large weight its product with `vectors`.
        noise: The norm of the terms of the sum; its rounding error is a multiple of `eps · noise`.
        use: With vectors, the use whose layout the gradient has.
        vectors: Vectors `[G, a, k]` for a large weight; the total is then the product `[G, b, k]`
            of each matrix `[b, a]` with them.
    """

    total: Tensor
    noise: Tensor
    use: Use | None = None
    vectors: Tensor | None = None

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """Return the total for a gradient in the weight's own shape."""
        gradient = gradient.to(self.total.dtype)
        if self.use is None or self.vectors is None:
            return gradient.reshape(-1)
        return torch.matmul(self.use.pack(gradient.reshape(-1)), self.vectors)


class SignedSums:
    """The sums `Σ u J` of all parameters, over pieces of a block of samples.

    For a large weight only the products of the gradient with random vectors are computed, so that
    it is not formed; see `Use.multiplied`.

    Attributes:
        u: The random weights `[N, O]` of the outputs that are added.
        sums: The sums by the name of the parameter.
    """

    def __init__(self, u: Tensor) -> None:
        self.u = u
        self.sums: dict[str, SignedSum] = {}

    def add_jacobian(self, name: str, start: int, jacobian: Tensor) -> None:
        """Add the Jacobian `[n, O, p]` of the samples from `start` on."""
        n, o, p = jacobian.shape
        total = self.u[start : start + n].reshape(1, n * o) @ jacobian.reshape(n * o, p)
        self._add(name, SignedSum(total[0], torch.linalg.vector_norm(jacobian)))

    def signed(self, start: int, b: Tensor) -> Tensor:
        """Return `Σ_i u[n, i] b[n, i]`, `[n, 1, ...]`, for cotangents b `[n, O, ...]`.

        The cotangents are large, and are read once in the order in which they are in memory.
        """
        u = self.u[start : start + b.shape[0]].unsqueeze(1)
        order = sorted(range(2, b.ndim), key=lambda d: -b.stride()[d])
        sizes = [b.shape[d] for d in order]
        found = torch.bmm(u, b.permute(0, 1, *order).reshape(*b.shape[:2], -1))
        back = [2 + order.index(d) for d in range(2, b.ndim)]
        return found.reshape(b.shape[0], 1, *sizes).permute(0, 1, *back)

    def add_uses(self, name: str, calls: Sequence[Call], signed: Sequence[Tensor]) -> None:
        """Add the uses of one weight, from the cotangents of each call after `signed`."""
        if not calls[0][0].weight.numel():
            none = self.u.new_zeros(0)
            self.sums[name] = SignedSum(none, none.sum())
            return
        is_large = calls[0][0].weight.numel() > SMALL
        kinds = {use.packed for use, _ in calls}
        is_alike = len(kinds) == 1 and None not in kinds
        for (use, source), of_call in zip(calls, signed, strict=True):
            rows = use.cotangents(of_call)[:, 0]
            if is_large and is_alike:
                self._add(name, self._applied(name, use, source, rows))
            else:
                self._add(name, _gradient(use, source, rows))

    def _applied(self, name: str, use: Use, source: Tensor, signed: Tensor) -> SignedSum:
        known = self.sums.get(name)
        vectors = None if known is None else known.vectors
        if vectors is None:
            vectors = signs(use.groups, use.columns_packed, _VECTORS, like=signed)
        return SignedSum(*use.multiplied(source, signed, vectors), use, vectors)

    def _add(self, name: str, more: SignedSum) -> None:
        known = self.sums.get(name)
        if known is None:
            self.sums[name] = more
        else:
            known.total = known.total + more.total
            known.noise = known.noise + more.noise


def _gradient(use: Use, source: Tensor, signed: Tensor) -> SignedSum:
    """Return `Σ u J` `[p]` of one use, for its signed cotangents `[n, G, T, b]`."""
    a = use.features(source)
    n, g, t, width = a.shape
    # The samples are treated as further positions of a single sample.
    features = a.transpose(0, 1).reshape(1, g, n * t, width)
    rows = signed.transpose(0, 1).reshape(1, 1, g, n * t, signed.shape[-1])
    total = use.jacobian(features, rows)[0, 0]
    noise = torch.linalg.vector_norm(rows)
    if features.is_floating_point():
        noise = noise * torch.linalg.vector_norm(features)
    return SignedSum(total, noise)
