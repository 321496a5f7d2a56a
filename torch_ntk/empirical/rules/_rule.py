"""What a rule knows about one use of a weight in a bilinear operation.

In `y = op(x, W)` with positions t (pixels, tokens, …) and groups g, entry (b, a) of the weight
multiplies input feature a for output unit b, so with A the input features and B = ∂f/∂y

    ∂f_i/∂W[g, b, a] = Σ_t B[i, g, t, b] · A[g, t, a].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Use(ABC):
    """One call in which a tracked parameter is the weight of a bilinear operation.

    Attributes:
        weight: The parameter itself; found again by identity.
        source: The input of the call, for one sample.
        groups, inputs, units: Sizes of g, a and b.
    """

    weight: Tensor
    source: Tensor
    groups: int
    inputs: int
    units: int

    @property
    def kind(self) -> Hashable:
        """Uses of one weight with equal kinds may be joined along their positions."""
        return (type(self), self.groups, self.inputs, self.units)

    @abstractmethod
    def features(self, source: Tensor) -> Tensor:
        """A `[N, G, T, a]` of stacked sources `[N, *source.shape]`."""

    @abstractmethod
    def cotangents(self, b: Tensor) -> Tensor:
        """B `[N, O, G, T, b]` of stacked cotangents `[N, O, *y.shape]`."""

    def positions(self, result: torch.Size) -> int:
        """How many positions one sample has, from the shape of what the call returns."""
        return result.numel() // max(1, self.groups * self.units)

    def gram(self, a1: Tensor, a2: Tensor) -> Tensor:
        """Inner products of features `[G, n1·T, a]`, `[G, n2·T, a]`: `[G, n1·T, n2·T]`."""
        return torch.bmm(a1, a2.transpose(1, 2))

    def jacobian(self, a: Tensor, b: Tensor) -> Tensor:
        """The Jacobian `[N, O, p]` with respect to the flattened weight."""
        return self.unpack(self._product(a, b))

    def columns(self, a: Tensor, b: Tensor) -> Tensor:
        """The Jacobian with its columns in an order that all uses of one kind have."""
        is_product = type(self).jacobian is Use.jacobian
        return self._product(a, b).flatten(2) if is_product else self.jacobian(a, b)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        n, o, g, t, units = b.shape
        if g == 1 and t > 1 and units > 1 and b.stride(4) == 1:
            # Units innermost, as channels are on a CPU: sample by sample they need not be copied.
            product = b.new_empty(n, o, units, a.shape[3])
            for one_a, one_b, out in zip(a, b, product, strict=True):
                torch.bmm(one_b[:, 0].transpose(1, 2), one_a.expand(o, -1, -1), out=out)
            return product.unsqueeze(2)
        left, right = self.matrices(a, b)
        return torch.bmm(left, right).view(n, g, o, units, -1).transpose(1, 2)

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents `[N·G, O·b, T]` and features `[N·G, T, a]`, whose product `columns` is."""
        n, o, g, t, units = b.shape
        left = b.permute(0, 2, 1, 4, 3).reshape(n * g, o * units, t)
        return left, a.reshape(n * g, t, -1)

    @property
    def is_product(self) -> bool:
        """Whether the Jacobian of all outputs is one product of matrices, and nothing else."""
        return self.groups == 1 and type(self).jacobian is Use.jacobian

    def forming(self, t: int) -> int:
        """Operations to form one row of the Jacobian from `t` positions, halved."""
        return t * int(self.weight.numel())

    def unpack(self, jacobian: Tensor) -> Tensor:
        """From `[N, O, G, b, a]` to `[N, O, p]` in the weight's own layout."""
        return jacobian.flatten(2)

    @property
    def gram_width(self) -> int:
        """Operations per entry of the feature Gram matrix, halved."""
        return self.inputs


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    """An argument of an intercepted call, given by position or by name; None if left out."""
    return args[index] if len(args) > index else kwargs.get(name)
