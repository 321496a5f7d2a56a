"""The predicted loss of a training with an optimizer whose P is constant, from a given momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from ...linalg import as_float64
from .._loss import LossLike, SquaredError
from ._course import ProbeLoss


@dataclass(frozen=True)
class Motion:
    """The momentum of an optimizer when a forecast begins.

    Attributes:
        momentum: J P m `[N, O]`, where m is the optimizer's average (or sum) of gradients: the
            direction in which the momentum moves the outputs.
        gain: The factor γ with which a gradient enters m; 1 - μ for an average.
        taken: The number of steps in the bias correction m / (1 - μ^taken); infinite without one.
    """

    momentum: Tensor
    gain: float
    taken: float


class MomentumCourse:
    """Predicts the loss at ascending steps by computing the outputs of every step.

    With Θ = J P Jᵀ an optimizer with constant P moves the outputs of a linearized network by

        m ← μ m + γ Θ ∂L/∂f,    f ← f - lr m / (1 - μ^t),

    where t is the number of the step. This is exact for any loss and any initial m.

    The arguments are those of `Course`, with the motion of the momentum at the start.
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

        theta = as_float64("kernel", kernel)
        size = outputs.numel()
        self._theta = theta.permute(0, 2, 1, 3).reshape(size, size)
        self._step, self._motion = (lr, momentum), motion
        start = outputs.detach().to(theta)
        self._loss = ProbeLoss(start, y, loss)
        self._now = (0, start, motion.momentum.to(theta))

    def loss_at(self, step: int) -> float:
        """The predicted loss after `step` steps, which must not decrease from call to call."""
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
