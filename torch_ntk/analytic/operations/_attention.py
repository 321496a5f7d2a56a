"""Self-attention with infinitely wide keys, queries and values (Hron et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._operation import Operation
from ._state import State, Variances

AttentionFunction = Literal["softmax", "identity", "relu", "abs"]


class _OfAllPairs(Operation):
    """A function of the covariances of all pairs of positions, from which its variances follow."""

    needs_variances = True
    mixes_positions = True

    def wants_full(self, full: bool, several: bool) -> bool:
        """Always."""
        return True

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Not asked for: positions are mixed."""
        raise AssertionError("the variances of attention follow from all pairs of positions")


@dataclass(frozen=True)
class AttentionWeights(_OfAllPairs):
    """With which weights the positions of an image look at each other: `A = ζ(g K(x, x))`.

    Keys and queries with the same weights, divided by their dimension, have products that converge
    to the covariance of the image's own features. So A is known for each image, and stands where
    the engine keeps what it knows of each image, in the place of this step's variances; what is
    computed for pairs of different images has no meaning, and nothing uses it. A second input is
    a mask, 0 at positions that are not looked at.

    Attributes:
        function: ζ.
        scale: g.
        length: T, the positions that look at each other.
    """

    function: AttentionFunction
    scale: float
    length: int

    def kept_per_image(self, positions: int) -> int:
        """A, `[T, T]`."""
        return self.length**2

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """`[n1, n2, T, T]`."""
        s = inputs[0]
        products = _square(s.nngp) * self.scale
        if len(inputs) > 1:
            looked_at = _mask(variances[1], 1).unsqueeze(-2) > 0
            outside = float("-inf") if self.function == "softmax" else 0.0
            products = products.masked_fill(~looked_at, outside)
        weights = _applied(self.function, products)
        ntk = None if s.ntk is None else weights.new_zeros(())
        return State(weights, ntk, distance=False, full=False)

    @property
    def cost(self) -> float:
        """An exponential for each entry."""
        return 20.0


@dataclass(frozen=True)
class Attention(_OfAllPairs):
    """Values that are looked at with the known weights A of each image, and an output layer.

    `K ← a A K A'ᵀ + b`, `Θ ← a A Θ A'ᵀ + c A K A'ᵀ + d`. The second input gives A.

    Attributes:
        weight_variance: a, of the output's and the values' weights together.
        bias_variance: b; 0 without biases.
        weight_gradient: c: a for the output's and again for the values' weights, if trained.
        bias_gradient: d; 0 without trained biases.
    """

    weight_variance: float
    bias_variance: float
    weight_gradient: float
    bias_gradient: float

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Two products of matrices `[T, T]` for each pair of images."""
        s = inputs[0]
        assert variances[1] is not None
        one, two = variances[1]

        def looked(a: Tensor) -> Tensor:
            return (one @ _square(a) @ two.mT).reshape(a.shape)

        nngp = looked(s.nngp)
        ntk = s.ntk
        if ntk is not None:
            ntk = looked(ntk) * self.weight_variance if ntk.ndim else torch.zeros_like(nngp)
            ntk = ntk + nngp * self.weight_gradient + self.bias_gradient
        nngp = nngp * self.weight_variance + self.bias_variance
        return State(nngp, ntk, distance=False, full=True)

    @property
    def cost(self) -> float:
        """Two products for each entry of the matrices, about."""
        return 100.0


@dataclass(frozen=True)
class ManyHeads(_OfAllPairs):
    """Attention without ζ of infinitely many heads, whose products of keys and queries are random.

    With independent keys and queries divided by the root of their dimension, the products G of a
    head are Gaussian with `E G[p, s] G'[p', s'] = sigma_query² sigma_key² K[p, p'] K[s, s']`. The
    mean over the heads of `Σ G[p, s] G'[p', s'] V[s] V'[s']` is `K[p, p'] Σ_{s,s'} K[s, s']²` times
    constants: with ⟨·,·⟩ the sum over the pairs s, s' of positions that are looked at,

        K ← a K ⟨K, K⟩ + b,    Θ ← a (Θ ⟨K, K⟩ + 2 K ⟨K, Θ⟩) + c K ⟨K, K⟩ + d.

    A second input is a mask, 0 at positions that are not looked at.

    Attributes:
        weight_variance: a, the product of the squares of all four scales.
        bias_variance: b; 0 without biases.
        weight_gradient: c: a for each of the four matrices of weights that is trained.
        bias_gradient: d; 0 without trained biases.
    """

    weight_variance: float
    bias_variance: float
    weight_gradient: float
    bias_gradient: float

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Sums over all pairs of positions, and products."""
        s = inputs[0]
        k = _square(s.nngp)
        seen = k
        if len(inputs) > 1:
            seen = k * _mask(variances[1], 0).unsqueeze(-1) * _mask(variances[1], 1).unsqueeze(-2)

        def with_seen(a: Tensor) -> Tensor:
            return (seen * a).sum((-2, -1), keepdim=True)

        nngp = k * with_seen(k)
        ntk = s.ntk
        if ntk is not None:
            made = torch.zeros_like(nngp)
            if ntk.ndim:
                t = _square(ntk)
                made = (t * with_seen(k) + 2 * k * with_seen(t)) * self.weight_variance
            ntk = (made + nngp * self.weight_gradient + self.bias_gradient).reshape(s.nngp.shape)
        nngp = (nngp * self.weight_variance + self.bias_variance).reshape(s.nngp.shape)
        return State(nngp, ntk, distance=False, full=True)

    @property
    def cost(self) -> float:
        """A few products and sums."""
        return 12.0


def _square(a: Tensor) -> Tensor:
    """`[n1, n2, P, Q, P, Q]` with the positions on one axis, `[n1, n2, T, T]`."""
    return a.flatten(-4, -3).flatten(-2)


def _mask(mask: Variances | None, side: int) -> Tensor:
    """`[n1, 1, T]` or `[1, n2, T]`."""
    assert mask is not None
    return mask[side].flatten(2)


def _applied(function: AttentionFunction, products: Tensor) -> Tensor:
    if function == "softmax":
        return products.softmax(-1)
    if function == "relu":
        return products.relu()
    return products.abs() if function == "abs" else products
