"""A kernel whose backward pass evaluates the model again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._checks import value_error
from .._parts import Kernels
from ..checksum import CLOSE, CLOSE_IN_DOUBLE
from ._kernel_gradient import KernelGradient


@dataclass(frozen=True)
class Recipe:
    """The data that the backward pass of a kernel needs.

    Attributes:
        gradient: The gradient of the kernel.
        keys: The keys of the kernel's parts.
        divisor: The number by which the kernel has been divided.
        evaluating: Makes the context in which the model is evaluated; see `quiet`.
        values: The parts of the kernel, with which those of the backward pass are compared; empty
            without a check.
    """

    gradient: KernelGradient
    keys: tuple[str, ...]
    divisor: int
    evaluating: Callable[[], AbstractContextManager[object]]
    values: Kernels

    def gradients(
        self, tensors: tuple[Tensor, ...], weights: tuple[Tensor | None, ...], create_graph: bool
    ) -> list[Tensor | None]:
        """Return the gradients with respect to the sources, whose values are `tensors`."""
        kind = self.gradient.job.fn.products
        given = {k: w for k, w in zip(self.keys, weights, strict=True) if w is not None}
        with torch.set_grad_enabled(create_graph):
            scaled = {k: w.to(kind) / self.divisor for k, w in given.items()}
        with self.evaluating():
            value, found = self.gradient.of(tensors, scaled, create_graph)
        if self.values:
            self._check_value(value.detach(), {k: w.detach() for k, w in given.items()})
        return found

    def _check_value(self, value: Tensor, weights: Kernels) -> None:
        """Raise an error unless ⟨W, Θ⟩ is that of the kernel that was returned.

        An attribute of the model that is not a parameter may have been changed in the meantime.
        """
        job, expected, scale, close = self.gradient.job, 0.0, 0.0, 0.0
        for key, w in weights.items():
            kernel = self.values[key]
            expected += float((w * kernel).sum(dtype=value.dtype))
            scale += float(w.abs().sum(dtype=value.dtype)) * float(kernel.abs().max())
            kinds = {kernel.dtype, job.fn.dtype, job.forward.precision}
            # Entries in half precision have larger rounding errors than the computation.
            rounding = 4 * torch.finfo(kernel.dtype).eps
            close = CLOSE_IN_DOUBLE if kinds == {torch.float64} else max(CLOSE, rounding)
        if abs(float(value) - expected) > close * scale:
            raise value_error(
                "model",
                "in the backward pass what it was when its kernel was computed",
                f"one whose kernel has changed (⟨W, Θ⟩ is {float(value):.6g}, and was "
                f"{expected:.6g})",
                "The backward pass evaluates the model again: change its modules, attributes and "
                "what forward_fn reaches after it.",
            )


def connected(kernels: Kernels, recipe: Recipe) -> Kernels:
    """Return the kernels with a graph to the sources."""
    with torch.enable_grad():
        found = _Kernel.apply(
            recipe, [kernels[k] for k in recipe.keys], *recipe.gradient.sources.tensors
        )
    return dict(zip(recipe.keys, found, strict=True))


class _Kernel(torch.autograd.Function):
    """Returns kernels that have been computed, and differentiates them with a `Recipe`."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, values: list[Tensor], *tensors: Tensor) -> Any:
        """Return the given values."""
        ctx.recipe = recipe
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)  # the backward pass raises an error if one was changed
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor | None) -> Any:
        """Return the derivatives with respect to the sources."""
        create_graph = torch.is_grad_enabled()
        return None, None, *ctx.recipe.gradients(ctx.saved_tensors, weights, create_graph)
