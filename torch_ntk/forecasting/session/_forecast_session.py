"""`ForecastSession`: a monitored training that is compared with its forecast."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import ArgumentError, UndefinedError
from ..._functional import unwrap
from ...monitor.loop import Session
from ...monitor.measure import FORECAST_CURVES, Curve
from ...monitor.reference import Reference
from ...monitor.stability import Training, find_loss
from .._from_kernel import forecast_from_kernel
from .._loss import LossLike
from ._course import Course, ProbeLoss
from ._momentum_course import MomentumCourse, Motion
from ._steps import Steps, gathered, rates_now, read_steps_of

_CONSTANT = (
    "{} assumes that P of {} stays as it is now. P is made of squared gradients that are averaged "
    "over about {:,.0f} steps: the prediction is valid for fewer steps than that."
)


class ForecastSession(Session):
    """A `Session` that also measures the loss on its probe and the loss that Θ_0 predicts.

    The arguments are those of `Session`.
    """

    def reset(self) -> None:
        """Forget all measurements: the next one is the first."""
        super().reset()
        self._course: Course | MomentumCourse | None = None
        self._loss: ProbeLoss | None = None
        self._kernel: Tensor | None = None
        self._rates: list[list[float]] | None = None  # `rates_now` at the start
        self._sgd = (0.0, 0.0)  # learning rate and momentum
        self._motion: Motion | None = None  # only for an optimizer with a P
        self._changed_at: int | None = None
        self._reached: tuple[int, Tensor] | None = None
        self._refused: str | None = None  # why there is no forecast

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without those that are made again from the others."""
        return {**super().__getstate__(), "_course": None, "_loss": None}

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The curves of all measured numbers."""
        return (*super().curves, *FORECAST_CURVES)

    def follow(self, optimizers: Sequence[Optimizer], step: int) -> None:
        """Notice if rates or momentum at `step` are no longer those of the forecast."""
        if self._rates is None or self._changed_at is not None:
            return
        now = rates_now(optimizers)
        if now != self._rates:
            self._changed_at = step
            self.warn_once(
                "rates",
                f"{self._owner}: the learning rate or momentum of the optimizer changed at step "
                f"{step}. The forecast assumes constant ones and ends there.",
            )

    def say_if_smaller(self, samples: int) -> None:
        """Warn if the probe has fewer than the `samples` training samples."""
        reference = self.record.reference
        if reference is not None and len(reference.probe) < samples:
            self.warn_once(
                "part",
                f"{self._owner} predicts a training on its probe of {len(reference.probe)} "
                f"samples, but {samples} are trained on. Pass them all as the probe for a forecast "
                "of this training.",
            )

    def _others(
        self, module: nn.Module, reference: Reference, step: int, training: Training
    ) -> dict[str, float]:
        """The loss on the probe, which must be known, and the predicted one."""
        network = unwrap(module)
        evaluation = self.record.evaluation
        reference.check_matches(network)
        device = next(network.parameters()).device
        reference = reference.to(device)
        found: dict[str, float] = {}
        if self._kernel is None and self._refused is None:
            found = self._begin_course(network, reference, training)
        dtype = evaluation.result_dtype(device)
        f = evaluation.outputs(network, reference.trained, reference.probe, dtype)
        found["actual"] = self._loss_on(reference, training).of(f)
        if self._kernel is None or (self._changed_at is not None and step > self._changed_at):
            return found
        course = self._course or self._make(reference, training, self._kernel)
        found["predicted"] = course.loss_at(step - reference.step)
        self._reached = course.reached if isinstance(course, Course) else None
        return found

    def _begin_course(
        self, network: nn.Module, reference: Reference, training: Training
    ) -> dict[str, float]:
        """Compute Θ_0 with each parameter group's learning rate: Σ_g (lr_g / lr) Θ_g.

        Returns:
            The largest stable learning rate, as `{"max_lr": …}`. It is empty for an optimizer whose
            steps a kernel does not predict, with a warning that says why.
        """
        try:
            steps = read_steps_of(training.optimizers, network, reference.trained)
        except ArgumentError as error:
            self._refused = str(error)  # at later steps the network is no longer the reference
            self.warn_once("refused", f"{self._owner} predicts nothing in this run: {error}")
            return {}
        optimizer, evaluation = steps.preconditioner, self.record.evaluation
        try:
            parts = [
                share * evaluation.kernel(network, names, reference.probe, "full", optimizer)
                for share, names in steps.groups
            ]
            kernel = torch.stack(parts).sum(0)
            self._sgd = steps.lr, steps.momentum
            self._motion = self._moving(network, reference, steps) if optimizer else None
            f, targets, loss = self._data(reference, training)
            rate, mu = steps.lr * steps.gain, steps.momentum
            kernel = kernel.to(f.device)
            found = forecast_from_kernel(
                kernel, f, targets, loss=loss, lr=rate, momentum=mu, steps=[0]
            )
            self._make(reference, training, kernel)
        except ValueError as error:
            self._refused = str(error)
            raise
        self._kernel, self._rates = kernel, rates_now(training.optimizers)
        if steps.weight_decay > 0.0:
            self.warn_once(
                "decay",
                f"{self._owner}: weight decay {steps.weight_decay:g} is not part of the forecast.",
            )
        if optimizer is not None:
            self.say(_CONSTANT.format(self._owner, type(optimizer).__name__, steps.memory))
        largest = found.max_lr / steps.gain
        if not found.stable:
            self.warn_once(
                "unstable",
                f"{self._owner}: the learning rate {steps.lr:.3g} is not below the largest stable "
                f"one, {largest:.3g}: the linearized training diverges. Lower it.",
            )
        return {"max_lr": largest}

    def _moving(self, network: nn.Module, reference: Reference, steps: Steps) -> Motion:
        """The direction in which the momentum of an optimizer with a P moves the outputs."""
        directions, evaluation = gathered(steps, network), self.record.evaluation
        dtype = evaluation.gradient_dtype(network)
        jacobian = evaluation.operator(network, list(directions), reference.probe).jacobian
        moved = jacobian @ {n: d.to(dtype) for n, d in directions.items()}
        return Motion(moved.reshape(-1, reference.size).double(), steps.gain, steps.taken)

    def _loss_on(self, reference: Reference, training: Training) -> ProbeLoss:
        """The loss of the training, on the probe; `ValueError` if it is not known."""
        if self._loss is None:
            f, targets, loss = self._data(reference, training)
            self._loss = ProbeLoss(f.double(), targets, loss)
        return self._loss

    def _make(
        self, reference: Reference, training: Training, kernel: Tensor
    ) -> Course | MomentumCourse:
        f, targets, loss = self._data(reference, training)
        given = kernel.to(f.device), f, targets, loss, *self._sgd
        if self._motion is None:
            self._course = Course(*given, self._reached)
        else:
            self._course = MomentumCourse(*given, self._motion)
        return self._course

    def _data(self, reference: Reference, training: Training) -> tuple[Tensor, Tensor, LossLike]:
        """The outputs f_0, the targets and the loss on the probe."""
        y = reference.probe.y
        if y is None:
            raise UndefinedError(reference.probe.why_none)
        f = reference.outputs
        assert f is not None  # the kernel is the full one
        loss: LossLike = find_loss(self.settings.loss, training.module, f, y)
        if isinstance(loss, nn.Module):  # its class weights must have the dtype of the outputs
            loss = copy.deepcopy(loss).to(y.device, torch.float64)
        targets = y.reshape(f.shape) if y.is_floating_point() and y.numel() == f.numel() else y
        return f, targets, loss

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The state of `Session`, with Θ_0 and the predicted outputs that were last reached."""
        return {
            **super().state_dict(),
            "forecast": {
                "kernel": self._kernel,
                "rates": None if self._rates is None else [list(r) for r in self._rates],
                "sgd": list(self._sgd),
                "motion": None if self._motion is None else list(astuple(self._motion)),
                "changed_at": self._changed_at,
                "reached": None if self._reached is None else list(self._reached),
                "refused": self._refused,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the forecast of the first run.

        Raises:
            ValueError: The state cannot be used; then nothing is changed.
        """
        super().load_state_dict(state)
        own = state["forecast"]
        self._course = self._loss = None
        self._kernel, self._rates = own["kernel"], own["rates"]
        self._sgd = (float(own["sgd"][0]), float(own["sgd"][1]))
        motion = own.get("motion")
        self._motion = None if motion is None else Motion(*motion)
        self._changed_at, self._refused = own["changed_at"], own["refused"]
        reached = own["reached"]
        self._reached = None if reached is None else (int(reached[0]), reached[1])
