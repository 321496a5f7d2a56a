"""The bias of a linear layer or a convolution."""

from __future__ import annotations

from math import prod

from torch import Tensor

from ._rule import Use


class BiasUse(Use):
    """`y = op(x, W) + b`, where b is one number for each channel.

    The Jacobian of b is the sum of the cotangents over positions. If the weight of the same call is
    contracted by Gram matrices, the bias is one more feature of that weight, which is 1 at every
    position and costs nothing; see `joins`.

    Args:
        weight: The bias.
        dims: The number of dimensions of y after the channels.
        joins: The use of the call's weight, if it has the same cotangents as this bias.
    """

    groups = inputs = 1

    def __init__(self, weight: Tensor, dims: int = 0, joins: Use | None = None) -> None:
        self.weight, self.dims, self._joins = weight, dims, joins
        self.joins: str | None = None
        self.source = weight.new_ones(())
        self.units = weight.numel()

    def found(self, name: str) -> None:
        """Store the names of the bias and of the weight that it joins."""
        super().found(name)
        self.joins = (self._joins.name or None) if self._joins is not None else None
        self._joins = None

    def positions(self, result: object) -> int:
        """Return 1, since cotangents are summed over positions."""
        return 1

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, 1, 1, 1]`, all ones."""
        return source.view(-1, 1, 1, 1)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, 1, 1, b]` for cotangents `[N, O, …, C, *out]`."""
        n, o = b.shape[:2]
        size = prod(b.shape[b.ndim - self.dims :])
        b = b.reshape(n, o, -1, self.units, size)
        one = b.shape[2] * size == 1
        return (b if one else b.sum((2, 4))).view(n, o, 1, 1, self.units)

    def forming(self, t: int) -> int:
        """Return 0, since the cotangents are the Jacobian."""
        return 0

    def jacobian(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the cotangents, summed over the uses."""
        return (b if b.shape[3] == 1 else b.sum(3)).flatten(2)


def with_bias(use: Use, bias: Tensor | None, dims: int, joins: bool = True) -> list[Use]:
    """Return the use of a call's weight, and that of its bias if it has one."""
    if bias is None or not bias.numel():
        return [use]
    return [use, BiasUse(bias, dims, use if joins else None)]
