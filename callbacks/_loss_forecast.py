"""`LossForecast`: the loss that the kernel at the start predicts, beside the real one."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from torch_ntk.forecasting.session import ForecastSession
from torch_ntk.monitor import LossLike, ProbeLike

from ._base import KernelCallback
from ._options import StabilityOptions
from ._trainer import has_averaged_weights, steps_taken


class LossForecast(KernelCallback):
    r"""Logs the loss that Θ_0 predicts for each step beside the real one, on its probe.

    `forecast/actual` is the loss of the network on the probe in eval mode, in float64.
    `forecast/predicted` is that of a network whose kernel stays Θ_0, after as many steps in full
    batches of the probe: for squared error of discrete steps with momentum, for any other loss of
    gradient flow at the time that so many steps amount to; see `torch_ntk.forecasting.forecast`.
    While the two agree, training is lazy; where they part, the kernel has changed, or batches are
    noise.
    The first point also has `forecast/max_lr`, the largest stable learning rate; one warning says
    so if the optimizer's is not below it.

    Learning rate and momentum are read from the optimizer at the first measurement; parameter
    groups may have rates of their own (Θ_0 then is Σ_g (lr_g/lr) Θ_g with the largest rate lr).
    Where a scheduler changes the rate later, one warning says so and nothing is predicted any more.
    Weight decay is not counted, as a warning says; nor are gradient clipping, dropout and the batch
    statistics of batch normalization. A run with `SGD` that is watched from a later step on is
    predicted as if its momentum was 0 then.

    For `Adam`, `AdamW` and `RMSprop` the kernel is J P Jᵀ with P = 1/(√v̂ + ε) held constant as it
    is at the reference, and Adam's average of gradients is momentum β₁. Before the first step there
    is no P: pass `anchor_at=N`, a step at which v̂ has settled. P follows the gradients: a message
    says over how many steps v̂ is an average, and the prediction is for fewer than these. It is one
    of discrete steps for every loss, and goes on from the momentum at the reference. Under
    these optimizers at step 0, under other ones, and with several that move one network, Nesterov's
    step or dampening, one warning says that nothing is predicted, and `forecast/actual` is logged
    alone.

    Θ_0 is taken once, with all outputs: (N·O)² numbers, which also stand in checkpoints. For
    losses other than squared error an equation of N·O unknowns is solved on.

    Args:
        probe: As in `NTKMonitor`, with targets. All training samples, for the forecast of a
            training: it is only about the samples of the probe, and a warning says so if there
            are more.
        loss: As in `StabilityEdge`.
        **options: As in `NTKMonitor`; `prefix` is "forecast" by default.

    Raises:
        TypeError, ValueError: An argument is wrong.

    Example:
        >>> import torch
        >>> from torch_ntk.callbacks import LossForecast
        >>> x, y = torch.randn(64, 10), torch.randint(3, (64,))
        >>> LossForecast((x, y), every_n_steps=10).prefix
        'forecast'
    """

    session_type = ForecastSession
    _session: ForecastSession

    def __init__(
        self, probe: ProbeLike, *, loss: LossLike = "auto", **options: Unpack[StabilityOptions]
    ) -> None:
        options.setdefault("prefix", "forecast")
        super().__init__(
            probe,
            metrics=("param_drift",),  # which costs nothing
            output="full",
            loss=loss,
            log_figures=False,
            **options,
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is due, and see whether the optimizer still does what was predicted."""
        if trainer.is_global_zero and not has_averaged_weights(trainer):
            self._session.follow(trainer.optimizers, steps_taken(trainer))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.is_global_zero:
            self._session.say_if_smaller(_training_samples(trainer))


def _training_samples(trainer: Trainer) -> int:
    """How many there are; 0 where that cannot be told."""
    loader = trainer.train_dataloader
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, Sized):
        return len(loader.dataset)
    return 0
