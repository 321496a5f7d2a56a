"""A caller's loss as a function of outputs, with its gradient and Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .._checks import check_tensor, describe, type_error, value_error
from ..memory import is_out_of_memory
from ._layout import Layout

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`loss(f, y) -> scalar`: f `[N]` or `[N, O]` in float64, y the targets."""


@dataclass(frozen=True, eq=False)
class OutputLoss:
    """The loss as a function of outputs `[D, C]` in the columns of a layout, with fixed y.

    Attributes:
        function: `loss(f, y)`.
        targets: y in the form that is passed to the loss.
        layout: The layout of the outputs.
    """

    function: Loss
    targets: Tensor
    layout: Layout

    def gradient(self, columns: Tensor, t: float) -> Tensor:
        """∂loss/∂f `[D, C]`, which must be finite."""
        gradient: Tensor = torch.func.grad(self._of_outputs)(self._outputs(columns))
        _check_derivative("gradient", gradient, t)
        return self.layout.columns(gradient.detach())

    def hessian(self, columns: Tensor, t: float) -> Tensor:
        """∂²loss/∂f² `[D, C, D, C]`, which must be finite."""
        gradient = torch.func.grad(self._of_outputs)
        second: Tensor = torch.func.jacrev(gradient)(self._outputs(columns))
        _check_derivative("second derivative", second, t)
        size = columns.shape
        return second.detach().reshape(*size, *size)

    def check(self, columns: Tensor) -> None:
        """Evaluate the loss once, at the outputs from which training starts.

        Raises:
            TypeError: The loss does not return a tensor of real floating-point numbers.
            ValueError: The loss raises an error, or its value is not a scalar, not finite, or does
                not depend on f.
        """
        with torch.enable_grad():
            outputs = self._outputs(columns).requires_grad_()
            try:
                value = self.function(outputs, self.targets)
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                raise value_error(
                    "loss",
                    "a function (f, y) that takes these outputs and targets",
                    f"one that raises {type(error).__name__} ({error}) where f is "
                    f"{describe(outputs)} and y {describe(self.targets)}",
                    "It is called with the outputs first, in float64.",
                ) from error
        expected = "a function (f, y) whose value is a scalar tensor (0-dim)"
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            raise type_error("loss", expected, f"the value {describe(value)}")
        if value.ndim != 0:
            raise value_error(
                "loss",
                expected,
                f"the value {describe(value)}",
                "Reduce it, for instance with .sum() or reduction='sum': the kernel "
                "multiplies the gradient of one number.",
            )
        if not value.requires_grad:
            raise value_error(
                "loss",
                "differentiable in its first argument",
                "a value that does not depend on f by differentiable operations",
                "It is called as loss(f, y), outputs first.",
            )
        if not bool(torch.isfinite(value)):
            raise value_error("loss", "finite where training starts", f"{float(value)} at f0")

    def _of_outputs(self, outputs: Tensor) -> Tensor:
        return self.function(outputs, self.targets)

    def _outputs(self, columns: Tensor) -> Tensor:
        # A copy that is made outside of inference mode, so that autograd can record it.
        return self.layout.outputs_of(columns.detach().clone())


def _check_derivative(what: str, value: Tensor, t: float) -> None:
    if bool(torch.isfinite(value).all()):
        return
    raise value_error(
        "loss",
        "twice differentiable at all outputs on the way",
        f"a {what} that is not finite at t = {t:.6g}",
        "Check whether it takes the logarithm or square root of 0.",
    )


def read_loss_targets(y: object, device: torch.device) -> Tensor:
    """A copy of y, which may be real numbers or labels `[N, ...]` of any shape."""
    tensor = check_tensor("y", y)
    if tensor.dtype.is_complex:
        raise type_error("y", "a tensor of real numbers", tensor)
    if tensor.ndim == 0:
        raise value_error("y", "of shape [N, ...]", tensor, "One row per sample.")
    if tensor.device != device:
        raise value_error(
            "y", f"on the device of the train kernel, {device}", tensor, "Move it there."
        )
    return tensor.detach().clone()
