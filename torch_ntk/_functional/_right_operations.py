"""Operations of torch whose derivatives are wrong under a transformation, made of others.

- Under vmap the derivative of `prelu` mistakes samples for outputs where there are as many of both.
- In forward mode `embedding` ignores `padding_idx`: the row has a derivative there. Its gradient
  may be sparse, which other operations do not take.
- `embedding_bag` has no forward-mode rule and no second derivative.
- `weight_norm` has no forward-mode rule, and its second derivative is wrong.
- The gradients of `batch_norm` and `instance_norm` for a single image read the one that comes in as
  if it were contiguous, also where its channels are innermost; under vmap their second derivatives
  do.
- The derivatives of `layer_norm`, and of the `batch_norm` that `instance_norm` calls, lose a term
  when they are differentiated twice more, without an error (pytorch issues 196700 and 196699).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class RightOperations(TorchFunctionMode):
    """Within it, these operations are made of others, which are right.

    Args:
        norms: Also normalizations, which take longer so and need it for third derivatives only.
    """

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        self._norms = norms

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._norms and func in _NORMS:
            func = _NORMS[func]
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
    """As `F.embedding_bag`, of which sums and means are written out."""
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


def _is_single(input: Tensor) -> bool:
    """Whether it is one sample; vmap makes one call of many."""
    return input.shape[0] == 1 and not torch._C._functorch.is_functorch_wrapped_tensor(input)


def _instance_norm_of_one(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    function = _instance_norm if _is_single(input) else F.instance_norm
    return function(input, *args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `F.batch_norm`, of which the affine map with running statistics is written out.

    One factor and one summand for each channel, as torch has them in its own loop: a backward pass
    is then one product, where vmap of torch's own makes several copies.
    """
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *[1] * (input.ndim - 2))
    return input * scale.view(shape) + shift.view(shape)


def _normalized(x: Tensor, trailing: int, eps: float) -> Tensor:
    axes = list(range(x.ndim - trailing, x.ndim))
    centered = x - x.mean(dim=axes, keepdim=True)
    return centered / (centered.square().mean(dim=axes, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


_RIGHT: dict[Any, Callable[..., Tensor]] = {
    F.prelu: _prelu,
    Tensor.prelu: _prelu,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch._weight_norm: _weight_norm,
    F.instance_norm: _instance_norm_of_one,
    F.batch_norm: _batch_norm,
}
_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
}
