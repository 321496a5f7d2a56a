"""Operations of torch whose derivatives are wrong under a transformation, made of others.

Under vmap the derivative of `prelu` mistakes samples for outputs where there are as many of both.
In forward mode `embedding` ignores `padding_idx`: the row has a derivative there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class RightOperations(TorchFunctionMode):
    """Within it, these operations are made of others, which are right."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return call_right(func, args, kwargs or {})


def call_right(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`func(*args, **kwargs)`, or the same made of other operations."""
    return _RIGHT.get(func, func)(*args, **kwargs)


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    slope = weight if weight.numel() == 1 else weight.reshape(-1, *[1] * (input.ndim - 2))
    if weight.numel() == 1:
        slope = weight.reshape(())
    return torch.where(input > 0, input, slope * input)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if scale_grad_by_freq:  # by how often a batch reads a row: only the backward pass knows
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    out = F.embedding(input, weight, None, max_norm, norm_type)
    if padding_idx is None:
        return out
    is_padding = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    return torch.where(is_padding, out.detach(), out)


_RIGHT: dict[Any, Callable[..., Tensor]] = {
    F.prelu: _prelu,
    Tensor.prelu: _prelu,
    F.embedding: _embedding,
}
