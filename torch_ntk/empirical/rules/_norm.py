"""Affine parameters of batch, layer, group, instance and root-mean-square normalization.

A call is `y = x̂ * w + b` with the normalized input x̂, which has a scale and a shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ._elementwise import ScaleUse, ShiftUse
from ._rule import Rule, Use, argument


def _affine(
    normalized: Tensor, weight: Tensor | None, bias: Tensor | None, along: Sequence[int]
) -> Sequence[Use]:
    uses: list[Use] = []
    if weight is not None and weight.numel():
        uses.append(ScaleUse(normalized, weight, along))
    if bias is not None and bias.numel():
        uses.append(ShiftUse(normalized, bias, along))
    return uses


def _arguments(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], defaults: Sequence[Any]
) -> list[Any]:
    given = [argument(args, kwargs, i, name) for i, name in enumerate(names)]
    return [d if g is None else g for g, d in zip(given, defaults, strict=True)]


def batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.batch_norm` with running statistics.

    Statistics of the batch couple the samples, and have no rule.
    """
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    defaults = (None,) * 5 + (False,)
    x, mean, variance, weight, bias, training = _arguments(names, args, kwargs, defaults)
    if training or mean is None or variance is None:
        return ()
    eps = argument(args, kwargs, 7, "eps")
    x = F.batch_norm(x, mean, variance, eps=1e-5 if eps is None else eps)
    return _affine(x, weight, bias, (1,))


def instance_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.instance_norm` with the statistics of each sample or running ones."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats")
    defaults = (None,) * 5 + (True,)
    x, mean, variance, weight, bias, own = _arguments(names, args, kwargs, defaults)
    eps = argument(args, kwargs, 7, "eps")
    eps = 1e-5 if eps is None else eps
    if own:  # a call with running statistics would update them a second time
        x = F.instance_norm(x, eps=eps)
    else:
        x = F.instance_norm(x, mean, variance, use_input_stats=False, eps=eps)
    return _affine(x, weight, bias, (1,))


def group_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.group_norm`."""
    names = ("input", "num_groups", "weight", "bias", "eps")
    defaults = (None, None, None, None, 1e-5)
    x, groups, weight, bias, eps = _arguments(names, args, kwargs, defaults)
    return _affine(F.group_norm(x, groups, eps=eps), weight, bias, (1,))


def layer_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `F.layer_norm`."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    defaults = (None, None, None, None, 1e-5)
    x, shape, weight, bias, eps = _arguments(names, args, kwargs, defaults)
    along = range(x.ndim - len(shape), x.ndim)
    return _affine(F.layer_norm(x, shape, eps=eps), weight, bias, along)


def rms_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the use in `F.rms_norm`, which has no shift."""
    names = ("input", "normalized_shape", "weight")
    x, shape, weight = _arguments(names, args, kwargs, (None,) * 3)
    along = range(x.ndim - len(shape), x.ndim)
    eps = argument(args, kwargs, 3, "eps")
    return _affine(F.rms_norm(x, shape, eps=eps), weight, None, along)


CALLS: dict[Any, Rule] = {
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
}
