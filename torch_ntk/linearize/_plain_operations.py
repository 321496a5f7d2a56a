"""Operations written out, because torch's derivatives of them are wrong or missing.

- `layer_norm` and the `batch_norm` that `instance_norm` calls have hand-written forward-mode
  rules that lose a term when they are differentiated forwards once more, without an error
  (pytorch issues 196700 and 196699).
- The forward-mode rule of `embedding` ignores `padding_idx` and `scale_grad_by_freq`, and its
  gradient may be sparse, which other operations do not take.
- `embedding_bag` has no forward-mode rule and no second derivative.
- `weight_norm` has no forward-mode rule, and its second derivative is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainOperations(TorchFunctionMode):
    """Within it, these functions are made of operations with right derivatives.

    Args:
        norms: Normalizations as well, which take longer written out.
        called: Gets the names of all functions that are called.
    """

    def __init__(self, norms: bool, called: set[str]) -> None:
        super().__init__()
        self._plain = _PLAIN | _PLAIN_NORMS if norms else _PLAIN
        self._called = called

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._called.add(getattr(func, "__name__", ""))
        return self._plain.get(func, func)(*args, **(kwargs or {}))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """As `F.embedding`: the gradients of a padding row are stopped, others divided by counts."""
    rows = F.embedding(input, weight, None, max_norm, norm_type)
    still = rows.detach()
    if scale_grad_by_freq:
        counts = torch.bincount(input.flatten(), minlength=len(weight))[input]
        # The difference is zero; its derivative is not.
        rows = still + (rows - still) / counts.unsqueeze(-1)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), still, rows)


def _embedding_of_weight(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """As `torch.embedding`, for which -1 is no padding."""
    padding = None if padding_idx < 0 else padding_idx
    return _embedding(indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """As `F.embedding_bag`, for sums and means."""
    if mode == "max":
        return F.embedding_bag(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
            per_sample_weights, include_last_offset, padding_idx,
        )  # fmt: skip
    if offsets is None:
        offsets = torch.arange(0, input.numel(), input.shape[1], device=input.device)
    elif include_last_offset:
        offsets = offsets[:-1]
    indices = input.reshape(-1)
    places = torch.arange(len(indices), device=input.device)
    bags = torch.searchsorted(offsets.to(places), places, right=True) - 1
    rows = _embedding(indices, weight, None, max_norm, norm_type, scale_grad_by_freq)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    counted = torch.ones_like(indices, dtype=weight.dtype).unsqueeze(-1)
    if padding_idx is not None:
        is_padding = (indices == padding_idx % len(weight)).unsqueeze(-1)
        counted = counted.masked_fill(is_padding, 0)
        rows = rows.masked_fill(is_padding, 0)
    out = rows.new_zeros(len(offsets), rows.shape[1]).index_add(0, bags, rows)
    if mode == "sum":
        return out
    return out / counted.new_zeros(len(offsets), 1).index_add(0, bags, counted).clamp(min=1)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """As `torch._weight_norm`: `g v / ‖v‖`, with a norm for each index along `dim`."""
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim]  # -1 is no axis here
    # Not by torch's norm: its derivatives write into tensors that later ones need.
    norm = v.square().sum(others, keepdim=dim != -1).sqrt()
    return v * (g / norm)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _affine(_normalized(input, len(normalized_shape), eps), weight, bias)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:  # an affine map with fixed numbers, for which the rule is right
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    shape = (-1, *[1] * (input.ndim - 2))
    return _affine(
        _normalized(input, input.ndim - 2, eps),
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _normalized(x: Tensor, trailing: int, eps: float) -> Tensor:
    axes = list(range(x.ndim - trailing, x.ndim))
    centered = x - x.mean(dim=axes, keepdim=True)
    return centered / (centered.square().mean(dim=axes, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


_PLAIN: dict[Any, Callable[..., Tensor]] = {
    F.embedding: _embedding,
    torch.embedding: _embedding_of_weight,
    F.embedding_bag: _embedding_bag,
    torch._weight_norm: _weight_norm,
}
_PLAIN_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
}
