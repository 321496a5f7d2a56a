"""Self-attention with infinitely wide keys, queries and values (Hron et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._operation import Operation
from ._state import State, Variances, joined_positions

AttentionFunction = Literal["softmax", "identity", "relu", "abs"]


class _OfAllPairs(Operation):
    """An operation whose result depends on the covariances of all pairs of positions."""

    needs_variances = True
    mixes_positions = True

    def wants_full(self, full: bool, several: bool) -> bool:
        """Return True."""
        return True

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Raise an error: the engine takes the variances from `state`."""
        raise AssertionError("the variances of attention follow from all pairs of positions")


@dataclass(frozen=True)
class AttentionWeights(_OfAllPairs):
    """The attention weights `A = ζ(g K(x, x))`, `[T, T]`, of each image.

    Products of keys and queries that have the same weights and are divided by their dimension
    converge to the covariance of the image's own features. So A is deterministic and belongs to
    an image; it reaches `Attention` as this operation's variances, which the engine stores per
    image. The values that `state` computes for pairs of different images are not used. A second
    input is a mask, which is 0 at positions that get no attention.

    Attributes:
        function: The function ζ.
        scale: The factor g.
        length: The number T of positions.
    """

    function: AttentionFunction
    scale: float
    length: int

    def kept_per_image(self, positions: int) -> int:
        """Return the number of entries of A."""
        return self.length**2

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return `[n1, n2, T, T]`, of which the pairs of an image with itself are A."""
        s = inputs[0]
        products = joined_positions(s.nngp) * self.scale
        if len(inputs) > 1:
            attended = _mask(variances[1], 1).unsqueeze(-2) > 0
            outside = float("-inf") if self.function == "softmax" else 0.0
            products = products.masked_fill(~attended, outside)
        weights = _applied(self.function, products)
        ntk = None if s.ntk is None else weights.new_zeros(())
        return State(weights, ntk, distance=False, full=False)

    @property
    def cost(self) -> float:
        """An exponential for each entry."""
        return 20.0


@dataclass(frozen=True)
class _WithOutputLayer(_OfAllPairs):
    """Attention followed by its output layer.

    With K̂ and Θ̂ the kernels before the constants of the weights, the result has
    `K ← a K̂ + b` and `Θ ← a Θ̂ + c K̂ + d`.

    Attributes:
        weight_variance: The number a.
        bias_variance: The number b, which is 0 without biases.
        weight_gradient: The number c: a for each trained matrix of weights that enters it.
        bias_gradient: The number d, which is 0 without trained biases.
    """

    weight_variance: float
    bias_variance: float
    weight_gradient: float
    bias_gradient: float

    def _output(self, like: Tensor, nngp: Tensor, ntk: Tensor | None) -> State:
        """Return K and Θ from K̂ and Θ̂ (with no axes: 0), in the shape of `like`."""
        if ntk is not None:
            ntk = ntk * self.weight_variance if ntk.ndim else torch.zeros_like(nngp)
            ntk = (ntk + nngp * self.weight_gradient + self.bias_gradient).reshape(like.shape)
        nngp = (nngp * self.weight_variance + self.bias_variance).reshape(like.shape)
        return State(nngp, ntk, distance=False, full=True)


@dataclass(frozen=True)
class Attention(_WithOutputLayer):
    """Attention with the deterministic weights A of each image, and its output layer.

    `K ← a A K A'ᵀ + b`, `Θ ← a A Θ A'ᵀ + c A K A'ᵀ + d`, where a is the product of the variances
    of the output's and the values' weights. The second input gives A.
    """

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Multiply K and Θ of each pair of images by two matrices `[T, T]`."""
        s = inputs[0]
        assert variances[1] is not None
        one, two = variances[1]

        def attended(a: Tensor) -> Tensor:
            return one @ joined_positions(a) @ two.mT

        ntk = attended(s.ntk) if s.ntk is not None and s.ntk.ndim else s.ntk
        return self._output(s.nngp, attended(s.nngp), ntk)

    @property
    def cost(self) -> float:
        """Two matrix products, estimated."""
        return 100.0


@dataclass(frozen=True)
class ManyHeads(_WithOutputLayer):
    """Attention without ζ, with infinitely many heads whose attention weights are random.

    With independent keys and queries divided by the root of their dimension, the products G of a
    head are Gaussian with `E G[p, s] G'[p', s'] = sigma_query² sigma_key² K[p, p'] K[s, s']`. The
    mean over the heads of `Σ G[p, s] G'[p', s'] V[s] V'[s']` is `K[p, p'] Σ_{s,s'} K[s, s']²` times
    constants. With ⟨·,·⟩ the sum over the pairs s, s' of positions that get attention,

        K ← a K ⟨K, K⟩ + b,    Θ ← a (Θ ⟨K, K⟩ + 2 K ⟨K, Θ⟩) + c K ⟨K, K⟩ + d,

    where a is the product of the squares of all four scales. A second input is a mask, which is 0
    at positions that get no attention.
    """

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return K and Θ of a block, from sums over all pairs of positions."""
        s = inputs[0]
        k = joined_positions(s.nngp)
        masked = k
        if len(inputs) > 1:
            masked = k * _mask(variances[1], 0).unsqueeze(-1) * _mask(variances[1], 1).unsqueeze(-2)

        def with_k(a: Tensor) -> Tensor:
            return (masked * a).sum((-2, -1), keepdim=True)

        ntk = s.ntk
        if ntk is not None and ntk.ndim:
            t = joined_positions(ntk)
            ntk = t * with_k(k) + 2 * k * with_k(t)
        return self._output(s.nngp, k * with_k(k), ntk)

    @property
    def cost(self) -> float:
        """A few products and sums."""
        return 12.0


def _mask(mask: Variances | None, side: int) -> Tensor:
    """Return one side's mask, `[n1, 1, T]` or `[1, n2, T]`."""
    assert mask is not None
    return mask[side].flatten(2)


def _applied(function: AttentionFunction, products: Tensor) -> Tensor:
    if function == "softmax":
        return products.softmax(-1)
    if function == "relu":
        return products.relu()
    return products.abs() if function == "abs" else products
