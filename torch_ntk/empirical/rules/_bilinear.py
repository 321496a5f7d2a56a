"""`F.bilinear`: a linear layer on the products of two inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bias import with_bias
from ._linear import LinearUse
from ._rule import Rule, Use, argument


class BilinearUse(LinearUse):
    """`y[..., o] = Σ_ab W[o, a, b] x1[..., a] x2[..., b]`: linear in the products x1 x2."""

    def __init__(self, source: Tensor, weight: Tensor) -> None:
        self.source, self.weight = source, weight
        self.units, self.inputs = weight.shape[0], weight.shape[1] * weight.shape[2]


def bilinear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.bilinear(input1, input2, weight, bias)`."""
    x1, x2 = argument(args, kwargs, 0, "input1"), argument(args, kwargs, 1, "input2")
    products = torch.einsum("...a,...b->...ab", x1, x2).flatten(-2)
    use = BilinearUse(products, argument(args, kwargs, 2, "weight"))
    return with_bias(use, argument(args, kwargs, 3, "bias"), 0)


CALLS: dict[Any, Rule] = {F.bilinear: bilinear}
