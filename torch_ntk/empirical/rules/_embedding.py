"""`F.embedding`: a linear layer on one-hot inputs, which are not formed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._rule import Rule, Use, argument


class EmbeddingUse(Use):
    """`y[t] = W[index[t]]`; the row of `padding_idx` has no gradient."""

    groups = 1
    gram_width = 1  # a comparison

    def __init__(self, source: Tensor, weight: Tensor, padding_idx: int | None) -> None:
        self.source, self.weight = source, weight
        rows, self.units = weight.shape
        self.inputs = 1
        self.rows = rows
        self.padding = None if padding_idx is None else padding_idx % rows

    def features(self, source: Tensor) -> Tensor:
        """Return the indices `[N, 1, T, 1]`, with -1 where there is no gradient."""
        index = source.reshape(source.shape[0], 1, -1, 1).long()
        if self.padding is None:
            return index
        return torch.where(index == self.padding, -1, index)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, 1, T, b]`."""
        return b.reshape(*b.shape[:2], 1, -1, self.units)

    def gram(self, a1: Tensor, a2: Tensor) -> Tensor:
        """Return 1 for pairs of positions that read the same row, and 0 for others."""
        same = (a1 == a2.transpose(1, 2)) & (a1 >= 0)
        return same.to(self.weight.dtype)

    def scaled(self, b: Tensor, a: Tensor, entries: Tensor) -> Tensor:
        """Return the cotangents times the entries of the row that each position reads."""
        return b * entries[a.squeeze(3).clamp(min=0)].unsqueeze(1)

    @property
    def packed(self) -> Hashable | None:
        """The key of a matrix of rows, which a linear layer with the same weight has, too."""
        return ("rows", self.rows, self.units)

    @property
    def columns_packed(self) -> int:
        """The number of entries of a row."""
        return self.units

    def pack(self, gradient: Tensor) -> Tensor:
        """Return a gradient as rows `[1, rows, b]`."""
        return gradient.reshape(1, self.rows, self.units)

    def multiplied(self, source: Tensor, b: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return products of the cotangents, added at the rows that were read."""
        index = self.features(source).flatten()
        products = (b @ vectors).reshape(len(index), -1) * (index >= 0).unsqueeze(1)
        found = products.new_zeros(self.rows, products.shape[1])
        found.index_add_(0, index.clamp(min=0), products)
        return found.unsqueeze(0), torch.linalg.vector_norm(products)

    def jacobian(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the cotangents, added at the rows that were read."""
        n, o, _, t, units = b.shape
        index = a.reshape(n, 1, t, 1)
        kept = b.reshape(n, o, t, units) * (index >= 0)
        rows = torch.zeros(n, o, self.rows, units, dtype=b.dtype, device=b.device)
        return rows.scatter_add_(2, index.clamp(min=0).expand(n, o, t, units), kept).flatten(2)


def embedding(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    """Return the use in `F.embedding(input, weight, padding_idx, max_norm, …)`."""
    max_norm = argument(args, kwargs, 3, "max_norm")
    by_frequency = argument(args, kwargs, 5, "scale_grad_by_freq")
    if max_norm is not None or by_frequency:
        return None  # these change the weight, or make its gradient depend on the batch
    source, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    return EmbeddingUse(source, weight, argument(args, kwargs, 2, "padding_idx"))


CALLS: dict[Any, Rule] = {F.embedding: embedding}
