"""Operations of torch with wrong derivatives under a transformation, replaced by other operations.

- Under vmap the derivative of `prelu` confuses samples with outputs if their numbers are equal.
- In forward mode `embedding` ignores `padding_idx`, so that the padding row has a derivative. Its
  gradient may be sparse, which other operations do not support.
- `embedding_bag` has no forward-mode rule and no second derivative.
- `weight_norm` has no forward-mode rule, and its second derivative is wrong.
- The backward passes of `batch_norm` and `instance_norm` for a single image read the incoming
  gradient as if it was contiguous, even if it is in the channels-last format. Under vmap this
  concerns their second derivatives.
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
    """A context in which these operations are computed by others, whose derivatives are correct.

    Args:
        norms: Whether normalizations are replaced as well. Only third derivatives need this, and
            it takes more time.
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
    """The result of `func(*args, **kwargs)`, computed by other operations if necessary."""
    return _RIGHT.get(func, func)(*args, **kwargs)


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Compute `F.prelu`, with one slope or a slope for each channel, by elementwise operations."""
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
    """Compute `F.embedding` so that the padding row has no derivative in any mode.

    The option `scale_grad_by_freq` is left to torch, since it changes the backward pass alone.
    """
    if scale_grad_by_freq:
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
    """Compute `F.embedding_bag`, for the modes "sum" and "mean" by plain operations."""
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
    """Compute `torch._weight_norm`: `g v / ‖v‖`, with a norm for each index along `dim`.

    With `dim=-1` there is a single norm of all entries.
    """
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim]
    # Derivatives of torch's norm write into tensors that higher derivatives need.
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
    """Compute `F.layer_norm` by plain operations."""
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
    """Compute `F.instance_norm` by plain operations.

    With running statistics it is an affine map, for which torch's derivatives are correct.
    """
    if not use_input_stats:
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
    """Whether the input is one sample, and not several or those of a vmap."""
    return input.shape[0] == 1 and not torch._C._functorch.is_functorch_wrapped_tensor(input)


def _instance_norm_of_one(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute `F.instance_norm`, for a single sample by plain operations."""
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
    """Compute `F.batch_norm`, with running statistics as an affine map of each channel.

    The map has one factor and one summand for each channel, as in torch's own loop. Its backward
    pass is one product, while vmap of torch's backward pass makes several copies.
    """
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *[1] * (input.ndim - 2))
    return input * scale.view(shape) + shift.view(shape)


def _normalized(x: Tensor, trailing: int, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps)` over the last `trailing` axes of `x`."""
    axes = list(range(x.ndim - trailing, x.ndim))
    centered = x - x.mean(dim=axes, keepdim=True)
    return centered / (centered.square().mean(dim=axes, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight * x + bias`, where None stands for 1 and 0."""
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
