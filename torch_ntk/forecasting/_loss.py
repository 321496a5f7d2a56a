"""Read a loss that is given by name, as torch's function or as the caller's own function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_choice, check_finite, describe, type_error, value_error
from ..predict._class_targets import class_targets

LossLike: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
"""`"mse"`, `"cross_entropy"`, or a function `loss(f, y) -> scalar` of all outputs and targets."""

_NAMES = ("mse", "cross_entropy")


@dataclass(frozen=True)
class SquaredError:
    """(scale/2)·(f - y)², summed or averaged over all N·O entries.

    Attributes:
        scale: 1 for the loss with a half, 2 for torch's `mse_loss`, which has none.
        reduction: `"sum"` or `"mean"`.
    """

    scale: float
    reduction: str

    def targets(self, y: Tensor, shape: torch.Size) -> Tensor:
        """Targets `[N, O]` in float64; labels and other shapes are refused."""
        n, outputs = shape
        if not y.is_floating_point():
            raise value_error(
                "y",
                "floating-point targets for squared error",
                y,
                f"For class labels pass one_hot(y, {outputs}, zero_centered=True).",
            )
        if y.shape != shape and not (outputs == 1 and y.shape == (n,)):
            raise value_error("y", f"of the outputs' shape {tuple(shape)}", y)
        return check_finite("y", y.detach().to(torch.float64).reshape(shape))

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss at each time of outputs `[T, N, O]`."""
        squares = 0.5 * self.scale * (f - y).square().flatten(1)
        return squares.sum(1) if self.reduction == "sum" else squares.mean(1)


@dataclass(frozen=True)
class SmoothLoss:
    """Any differentiable loss, as a function `loss(f, y) -> scalar`."""

    function: Callable[[Tensor, Tensor], Tensor]

    def targets(self, y: Tensor, shape: torch.Size) -> Tensor:
        """The targets, in float64 if they are floating point, labels of cross-entropy in int64."""
        if y.ndim == 0 or y.shape[0] != shape[0]:
            raise value_error("y", f"one target for each of {shape[0]} samples", y)
        y = y.detach()
        if y.is_floating_point():
            y = check_finite("y", y.to(torch.float64))
        return class_targets(self.function, y, shape)

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss at each time of outputs `[T, N, O]`."""
        with torch.no_grad():
            found = [self.function(outputs, y) for outputs in f]
        return torch.stack([value.detach().to(torch.float64).reshape(()) for value in found])


def read_loss(loss: object, reduction: object) -> SquaredError | SmoothLoss:
    """The loss that the caller's arguments describe.

    Torch's own squared error is recognized, because discrete steps have a closed form for it too;
    unlike `"mse"` it has no factor ½.
    """
    check_choice("reduction", reduction, ("mean", "sum"), "The loss must be a scalar.")
    if isinstance(loss, str):
        check_choice("loss", loss, _NAMES, "Or pass a function loss(f, y) -> scalar.")
    if loss == "mse":
        return SquaredError(1.0, str(reduction))
    if loss is F.mse_loss:
        return SquaredError(2.0, str(reduction))
    if loss == "cross_entropy" or loss is F.cross_entropy:
        return SmoothLoss(partial(F.cross_entropy, reduction=str(reduction)))
    if type(loss) is nn.MSELoss:
        return SquaredError(2.0, check_choice("loss.reduction", loss.reduction, ("mean", "sum")))
    if isinstance(loss, type) or not callable(loss):
        raise type_error(
            "loss",
            "'mse', 'cross_entropy' or a function loss(f, y) -> scalar",
            describe(loss) if not isinstance(loss, type) else f"the class {loss.__name__}",
        )
    return SmoothLoss(loss)
