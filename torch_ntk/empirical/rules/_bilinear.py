"""`F.bilinear`: a linear layer on the products of two inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bias import with_bias
from ._rule import Use, argument


class BilinearUse(Use):
    """`y[..., o] = Σ_ab W[o, a, b] x1[..., a] x2[..., b]`; features are the products x1 x2."""

    groups = 1

    def __init__(self, source: Tensor, weight: Tensor) -> None:
        self.source, self.weight = source, weight
        self.units, self.inputs = weight.shape[0], weight.shape[1] * weight.shape[2]

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, 1, T, a·b]`."""
        return source.reshape(source.shape[0], 1, -1, self.inputs)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, 1, T, o]`."""
        return b.reshape(*b.shape[:2], 1, -1, self.units)


def bilinear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.bilinear(input1, input2, weight, bias)`."""
    x1, x2 = argument(args, kwargs, 0, "input1"), argument(args, kwargs, 1, "input2")
    products = torch.einsum("...a,...b->...ab", x1, x2).flatten(-2)
    use = BilinearUse(products, argument(args, kwargs, 2, "weight"))
    return with_bias(use, argument(args, kwargs, 3, "bias"), 0)


CALLS: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Use]]] = {
    F.bilinear: bilinear
}
