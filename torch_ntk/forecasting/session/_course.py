"""The predicted loss of one training with SGD, evaluated step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from ...linalg import as_float64
from ...predict import FlowPredictor, MSEPredictor, gradient_flow
from .._from_kernel import descended, descent, flow_time
from .._loss import LossLike, SquaredError, read_loss


class ProbeLoss:
    """The loss of outputs on a probe.

    Args:
        like: Outputs `[N, O]` on the device and in the dtype in which the loss is computed.
        y: Targets.
        loss: A loss as in `torch_ntk.forecasting.forecast`, averaged over samples.
    """

    def __init__(self, like: Tensor, y: Tensor, loss: LossLike) -> None:
        self.rule, self._like = read_loss(loss, "mean"), like
        self.targets = self.rule.targets(y.to(like.device), like.shape)

    def of(self, outputs: Tensor) -> float:
        """The loss of outputs `[N, O]`."""
        value = float(self.rule.values(outputs.to(self._like)[None], self.targets)[0])
        return value if value == value else float("inf")


class Course:
    """Predicts the loss at ascending steps; decompositions and solutions are kept between them.

    Args:
        kernel: Θ_0 on the training samples, `[N, N, O, O]`.
        outputs: f_0, `[N, O]`.
        y: Targets.
        loss: A loss as in `torch_ntk.forecasting.forecast`, averaged over samples.
        lr: The learning rate.
        momentum: The momentum of SGD.
        reached: The last step that was predicted, and its outputs, from which to continue.

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
        reached: tuple[int, Tensor] | None = None,
    ) -> None:

        theta = as_float64("kernel", kernel)
        self._start = outputs.detach().to(theta)
        self._loss = ProbeLoss(self._start, y, loss)
        self._step, rule, targets = (lr, momentum), self._loss.rule, self._loss.targets
        self._predict: MSEPredictor | FlowPredictor
        if isinstance(rule, SquaredError):
            self._predict = descent(rule, theta, targets, lr, momentum)
        else:
            size = outputs.shape[1]
            self._predict = gradient_flow(rule.function, theta, targets, num_outputs=size)
        self.reached = (0, self._start) if reached is None else (reached[0], reached[1].to(theta))

    def loss_at(self, step: int) -> float:
        """The predicted loss after `step` steps, which must not decrease from call to call."""
        if isinstance(self._predict, MSEPredictor):
            outputs, _ = descended(self._predict, torch.tensor([step]), self._start)
            self.reached = (step, outputs[0])
        elif step > self.reached[0]:
            # Gradient flow has no memory, so that it can start from the outputs of the last step.
            before, at = self.reached
            first, last = flow_time(torch.tensor([before, step]).double(), *self._step).tolist()
            found, _ = self._predict(last - first, f0_train=at)
            self.reached = (step, found)
        return self._loss.of(self.reached[1])
