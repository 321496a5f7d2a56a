"""The predicted loss under an optimizer with a constant P, whose momentum is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from ...linalg import as_float64
from .._forecast import Forecast
from .._from_kernel import forecast_from_kernel
from .._loss import LossLike, SquaredError
from ._course import ProbeLoss


@dataclass(frozen=True)
class Motion:
    """What an optimizer has gathered when a forecast begins.

    Attributes:
        momentum: J P m `[N, O]`, m the average (or sum) of gradients: how it moves the outputs.
        gain: γ, the part of a gradient that goes into m, 1 - μ for an average.
        taken: Steps by which m is corrected, m / (1 - μ^taken); infinite if it is not.
    """

    momentum: Tensor
    gain: float
    taken: float


class MomentumCourse:
    """Predicted losses at ascending steps, step by step in the outputs.

    With Θ = J P Jᵀ an optimizer whose P is constant moves the outputs of a linearized network by

        m ← μ m + γ Θ ∂L/∂f,    f ← f - lr m / (1 - μ^t),

    t the number of the step: for any loss exactly, and from any m.

    Args:
        kernel: Θ on the training samples, `[N, N, O, O]`.
        outputs: f at the start, `[N, O]`.
        y: Targets.
        loss: As in `torch_ntk.forecasting.forecast`; a mean.
        lr: The learning rate.
        momentum: μ.
        motion: What has been gathered.

    Raises:
        TypeError, ValueError: As `torch_ntk.forecasting.forecast_from_kernel`.
    """

    def __init__(
        self,
        kernel: Tensor,
        outputs: Tensor,
        y: Tensor,
        loss: LossLike,
        lr: float,
        momentum: float,
        motion: Motion,
    ) -> None:
        self._arguments = (kernel, outputs, y, loss)
        theta = as_float64("kernel", kernel)
        size = outputs.numel()
        self._theta = theta.permute(0, 2, 1, 3).reshape(size, size)
        self._step, self._motion = (lr, momentum), motion
        start = outputs.detach().to(theta)
        self._loss = ProbeLoss(start, y, loss)
        self._now = (0, start, motion.momentum.to(theta))

    def at_start(self) -> Forecast:
        """The forecast of step 0, for learning rates γ times as large: curvatures and limit."""
        kernel, outputs, y, loss = self._arguments
        lr, momentum = self._step
        rate = self._motion.gain * lr
        return forecast_from_kernel(
            kernel, outputs, y, loss=loss, lr=rate, momentum=momentum, steps=[0]
        )

    def loss_at(self, step: int) -> float:
        """The predicted loss after `step` steps, not before the one that was last asked for."""
        lr, mu = self._step
        motion = self._motion
        k, f, m = self._now
        while k < step:
            k += 1
            slope = (self._theta @ self._gradient(f).flatten()).reshape(f.shape)
            m = mu * m + motion.gain * slope
            f = f - lr / (1.0 - mu ** (motion.taken + k)) * m
        self._now = (k, f, m)
        return self._loss.of(f)

    def _gradient(self, f: Tensor) -> Tensor:
        """∂L/∂f `[N, O]`."""
        rule, y = self._loss.rule, self._loss.targets
        if isinstance(rule, SquaredError):
            return rule.scale / f.numel() * (f - y)
        function = rule.function
        with torch.inference_mode(False):
            found: Tensor = grad(lambda at: function(at, y))(f)
        return found.detach()
