"""`ForecastSession`: a session that also knows the loss which Θ_0 predicts."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._functional import unwrap
from ...monitor import FORECAST_CURVES, Curve, Observation, Reference, Session, Training
from ...monitor.stability import find_loss
from .._loss import LossLike
from ._course import Course
from ._steps import rates_now, read_steps_of


class ForecastSession(Session):
    """A `Session` that measures the loss on its probe, and the one that Θ_0 predicted for the step.

    Arguments as for `Session`.
    """

    def reset(self) -> None:
        """Forget everything: the next measurement is the first one."""
        super().reset()
        self._course: Course | None = None
        self._kernel: Tensor | None = None
        self._rates: list[list[float]] | None = None  # of all groups at the start
        self._sgd = (0.0, 0.0)  # learning rate and momentum
        self._changed_at: int | None = None
        self._reached: tuple[int, Tensor] | None = None
        self._refused: str | None = None  # why there is no forecast

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again from the rest."""
        return {**super().__getstate__(), "_course": None}

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The curves of what is measured."""
        return (*super().curves, *FORECAST_CURVES)

    def follow(self, optimizers: Sequence[Optimizer], step: int) -> None:
        """Note if the steps from this one on are others than those that were predicted.

        Args:
            optimizers: Those of the training.
            step: Optimizer steps taken.
        """
        if self._rates is None or self._changed_at is not None:
            return
        now = rates_now(optimizers)
        if now != self._rates:
            self._changed_at = step
            self.warn_once(
                "rates",
                f"{self._owner}: the learning rate or momentum of the optimizer changed at step "
                f"{step}. The forecast is for a constant one: nothing is predicted after it.",
            )

    def say_if_smaller(self, samples: int) -> None:
        """Warn if the probe is only a part of so many training samples."""
        reference = self.record.reference
        if reference is not None and len(reference.probe) < samples:
            self.warn_once(
                "part",
                f"{self._owner} predicts a training on its probe of {len(reference.probe)} "
                f"samples, but {samples} are trained on. Pass them all as the probe for a forecast "
                "of this training.",
            )

    def measure(
        self,
        network: nn.Module,
        step: int,
        training: Training,
        *,
        batches: int,
        batch: Any = None,
    ) -> Observation:
        """Measure within `attempt`, after `begin`; arguments as for `Session`.

        Raises:
            ValueError: The training is none that a kernel predicts.
        """
        began = time.perf_counter()
        found = self._compare(unwrap(self._adapted(network)), step, training)
        spent = time.perf_counter() - began
        seen = super().measure(network, step, training, batches=batches, batch=batch)
        self.record.add(seen, **found, seconds=seen.scalars["seconds"] + spent)
        return seen

    def _compare(self, network: nn.Module, step: int, training: Training) -> dict[str, float]:
        reference, evaluation = self.record.reference, self.record.evaluation
        if reference is None:
            return {}  # the record says what is missing
        if self._refused is not None:
            raise ValueError(self._refused)
        reference.check_matches(network)
        device = next(network.parameters()).device
        reference = reference.to(device)
        found: dict[str, float] = {}
        if self._kernel is None:
            try:
                found["max_lr"] = self._begin_course(network, reference, training)
            except ValueError as error:
                # At later steps the network is not any more the one of the reference.
                self._refused = str(error)
                raise
        assert self._kernel is not None
        course = self._course or self._make(reference, training, self._kernel)
        dtype = evaluation.result_dtype(device)
        f = evaluation.outputs(network, reference.trained, reference.probe, dtype)
        found["actual"] = course.loss_of(f)
        if self._changed_at is None or step <= self._changed_at:
            found["predicted"] = course.loss_at(step - reference.step)
            self._reached = course.reached
        return found

    def _begin_course(self, network: nn.Module, reference: Reference, training: Training) -> float:
        """Take Θ_0, with each parameter's share of the learning rate: Σ_g (lr_g / lr) Θ_g.

        Returns:
            The largest stable learning rate.
        """
        steps = read_steps_of(training.optimizers, network, reference.trained)
        parts = [
            share * self.record.evaluation.kernel(network, names, reference.probe, "full")
            for share, names in steps.groups.items()
        ]
        kernel = torch.stack(parts).sum(0)
        self._sgd = steps.lr, steps.momentum
        course = self._make(reference, training, kernel)
        self._kernel, self._rates = kernel, rates_now(training.optimizers)
        if steps.weight_decay > 0.0:
            self.warn_once(
                "decay",
                f"{self._owner}: weight decay {steps.weight_decay:g} is not part of the forecast.",
            )
        found = course.at_start()
        if not found.stable:
            self.warn_once(
                "unstable",
                f"{self._owner}: the learning rate {found.lr:.3g} is not below the largest stable "
                f"one, {found.max_lr:.3g}: the linearized training diverges. Lower it.",
            )
        return found.max_lr

    def _make(self, reference: Reference, training: Training, kernel: Tensor) -> Course:
        y = reference.probe.y
        if y is None:
            raise ValueError(reference.probe.why_none)
        f = reference.outputs
        assert f is not None  # the kernel is the full one
        loss: LossLike = find_loss(self.settings.loss, training.module, f, y)
        if isinstance(loss, nn.Module):  # weights of classes have to be of the outputs' dtype
            loss = copy.deepcopy(loss).to(y.device, torch.float64)
        targets = y.reshape(f.shape) if y.is_floating_point() and y.numel() == f.numel() else y
        self._course = Course(kernel.to(y.device), f, targets, loss, *self._sgd, self._reached)
        return self._course

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """As that of `Session`, with Θ_0 and the predicted outputs that were last reached."""
        return {
            **super().state_dict(),
            "forecast": {
                "kernel": self._kernel,
                "rates": None if self._rates is None else [list(r) for r in self._rates],
                "sgd": list(self._sgd),
                "changed_at": self._changed_at,
                "reached": None if self._reached is None else list(self._reached),
                "refused": self._refused,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with the forecast of the first run.

        Raises:
            ValueError: It cannot be used; nothing changes then.
        """
        super().load_state_dict(state)
        own = state["forecast"]
        self._course, self._kernel, self._rates = None, own["kernel"], own["rates"]
        self._sgd = (float(own["sgd"][0]), float(own["sgd"][1]))
        self._changed_at, self._refused = own["changed_at"], own["refused"]
        reached = own["reached"]
        self._reached = None if reached is None else (int(reached[0]), reached[1])
