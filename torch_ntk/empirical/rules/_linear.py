"""`F.linear(x, W)`, `x @ W`, `torch.addmm(b, x, W)` and the methods of the same meaning."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bias import with_bias
from ._rule import Rule, Use, argument


class LinearUse(Use):
    """`y[..., b] = Σ_a W[b, a] x[..., a]`; all leading dimensions of a sample are positions."""

    groups = 1

    def __init__(self, source: Tensor, weight: Tensor) -> None:
        self.source, self.weight = source, weight
        self.units, self.inputs = weight.shape

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, 1, T, a]`."""
        return source.reshape(source.shape[0], 1, -1, self.inputs)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, 1, T, b]`."""
        return b.reshape(*b.shape[:2], 1, -1, self.units)

    @property
    def packed(self) -> Hashable | None:
        """The key of a matrix of rows, which an embedding with the same weight has, too."""
        return ("rows", self.units, self.inputs)


class MatmulUse(LinearUse):
    """`y = x @ W` with W `[a, b]`: a linear layer with a transposed weight."""

    def __init__(self, source: Tensor, weight: Tensor) -> None:
        self.source, self.weight = source, weight
        self.inputs, self.units = weight.shape

    @property
    def packed(self) -> Hashable | None:
        """The key of a transposed matrix, which only uses of this kind have."""
        return self.kind

    def unpack(self, jacobian: Tensor) -> Tensor:
        """Reorder `[N, O, G, b, a]` to the weight's layout, in which a precedes b."""
        return jacobian.transpose(3, 4).flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """Undo `unpack`, for a gradient `[p]`."""
        return gradient.reshape(1, self.inputs, self.units).transpose(1, 2)


def linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.linear(input, weight, bias)`."""
    source, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    if weight.ndim != 2:
        return ()
    return with_bias(LinearUse(source, weight), argument(args, kwargs, 2, "bias"), 0)


def matmul(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    """Return the use in `torch.matmul(input, other)` with a matrix on the right, or None."""
    source = argument(args, kwargs, 0, "input")
    weight = argument(args, kwargs, 1, "other")
    if weight is None:
        weight = argument(args, kwargs, 1, "mat2")
    if weight is None or weight.ndim != 2 or "out" in kwargs:
        return None
    return MatmulUse(source, weight)


def addmm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `torch.addmm(b, x, W)` with a row b, as GPT-2 calls linear layers."""
    bias, source, weight = (
        argument(args, kwargs, i, name) for i, name in enumerate(("input", "mat1", "mat2"))
    )
    plain = len(args) <= 3 and kwargs.get("beta", 1) == kwargs.get("alpha", 1) == 1
    if not plain or "out" in kwargs or bias.shape != weight.shape[1:]:
        return ()
    return with_bias(MatmulUse(source, weight), bias, 0)


CALLS: dict[Any, Rule] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.mm: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    Tensor.mm: matmul,
    torch.addmm: addmm,
    Tensor.addmm: addmm,
}
