"""Determines which loss is trained, and evaluates it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from ..._checks import UndefinedError, check_choice, describe, type_error, value_error

LossLike: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
"""`"auto"`, `"cross_entropy"`, `"mse_loss"`, or a function `loss(f, y) -> scalar`."""

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_NAMES = ("auto", "cross_entropy", "mse_loss")
IGNORED = -100
"""The label that torch's cross-entropy ignores."""

_REMEDY = "Pass loss=, the function loss(f, y) -> scalar that is trained."


def check_loss(loss: object) -> LossLike:
    """Check the user's argument `loss` as far as that is possible without outputs."""
    if isinstance(loss, str):
        return check_choice("loss", loss, _NAMES, "Or pass a function loss(f, y) -> scalar.")
    if isinstance(loss, type) or not callable(loss):
        came = f"the class {loss.__name__}" if isinstance(loss, type) else describe(loss)
        raise type_error("loss", "a name or a function loss(f, y) -> scalar", came, "Or 'auto'.")
    _refuse_sum(loss)
    return loss


def find_loss(loss: LossLike, module: nn.Module | None, f: Tensor, y: Tensor) -> LossFunction:
    """The function of outputs `[N, O]` and targets that is trained.

    `"auto"` is the only loss module of `module`. If it has none, the loss is cross-entropy for
    class labels and the mean squared error for floating-point targets. The result is
    `F.cross_entropy` or `F.mse_loss` itself if it is equal to one of these. If the loss cannot be
    determined, that is an `UndefinedError`.
    """
    if loss == "auto":
        own = [] if module is None else [m for m in module.modules() if isinstance(m, _Loss)]
        if len(own) > 1:
            kinds = ", ".join(type(m).__name__ for m in own)
            raise UndefinedError(f"the module has several losses ({kinds}). {_REMEDY}")
        loss = own[0] if own else _by_targets(f, y)
    if loss == "cross_entropy" or _is_plain_cross_entropy(loss):
        return F.cross_entropy
    _refuse_sum(loss)
    if isinstance(loss, str) or type(loss) is nn.MSELoss:
        return F.mse_loss
    return loss


def like_outputs(loss: LossFunction, f: Tensor) -> LossFunction:
    """The loss, where weights of classes in a loss module have device and dtype of the outputs."""
    return copy.deepcopy(loss).to(f.device, f.dtype) if isinstance(loss, nn.Module) else loss


def loss_of(loss: LossFunction, f: Tensor, y: Tensor) -> float:
    """The loss of outputs `[N, O]` in their dtype; `UndefinedError` if it is not defined."""
    loss = like_outputs(loss, f)
    if y.is_floating_point():
        y = (y.reshape(f.shape) if y.numel() == f.numel() else y).to(f.dtype)
    try:
        return float(loss(f, y).detach())
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UndefinedError(
            f"the loss cannot be taken of outputs {tuple(f.shape)} and targets {tuple(y.shape)}: "
            f"{error} {_REMEDY}"
        ) from error


def _by_targets(f: Tensor, y: Tensor) -> str:
    """The name of the usual loss for targets of this form; `UndefinedError` if there is none."""
    outputs = f.shape[1]
    if not y.is_floating_point():
        if y.ndim == 1 and outputs > 1:
            return "cross_entropy"
        raise UndefinedError(
            f"integer targets of shape {tuple(y.shape)} with {outputs} outputs per sample do not "
            f"say which loss is trained. {_REMEDY}"
        )
    if y.numel() != f.numel():
        raise UndefinedError(
            f"targets of shape {tuple(y.shape)} for outputs {tuple(f.shape)} do not say which "
            f"loss is trained. {_REMEDY}"
        )
    rows = y.reshape(f.shape)
    is_probability = bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-4).all())
    if outputs > 1 and is_probability:
        raise UndefinedError(
            "targets whose rows are probabilities may be meant for cross-entropy or for squared "
            "error. Pass loss='cross_entropy' or loss='mse_loss'."
        )
    return "mse_loss"


def _is_plain_cross_entropy(loss: object) -> bool:
    """Whether the loss has the second derivative of `F.cross_entropy`, as with label smoothing."""
    if loss is F.cross_entropy:
        return True
    return (
        type(loss) is nn.CrossEntropyLoss
        and loss.weight is None
        and loss.ignore_index == IGNORED
        and loss.reduction == "mean"
    )


def _refuse_sum(loss: object) -> None:
    """Raise a `ValueError` if a loss module is not a mean over samples."""
    reduction = getattr(loss, "reduction", "mean") if isinstance(loss, nn.Module) else "mean"
    if reduction in ("sum", "none"):
        raise value_error(
            "loss",
            "a mean over samples, whose curvature does not grow with their number",
            f"{type(loss).__name__} with reduction={reduction!r}",
            "Pass loss=lambda f, y: batch_size * mean_loss(f, y) for a sum over a batch.",
        )
