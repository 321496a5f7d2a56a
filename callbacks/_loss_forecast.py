"""`LossForecast`: the loss that the kernel at the start predicts, and the actual loss."""

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
    r"""Logs the loss on the probe that Θ_0 predicts for each step, and the actual loss.

    `forecast/actual` is the loss of the network on the probe in eval mode, in float64.
    `forecast/predicted` is the loss of a network whose kernel stays Θ_0, after the same number of
    full-batch steps on the probe. For squared error it is that of discrete steps with momentum, and
    for any other loss that of gradient flow at the corresponding time; see
    `torch_ntk.forecasting.forecast`. While the two agree, training is lazy. Otherwise the kernel
    has changed, or the noise of batches matters.
    The first point also has `forecast/max_lr`, the largest stable learning rate. If the learning
    rate of the optimizer is not below it, there is a warning.

    Learning rate and momentum are read from the optimizer at the first measurement. If parameter
    groups have different learning rates, Θ_0 is Σ_g (lr_g/lr) Θ_g with the largest rate lr. If a
    scheduler changes the learning rate later, there is a warning, and no further predictions are
    made. Weight decay is not considered, as a warning says, nor are gradient clipping, dropout and
    the batch statistics of batch normalization. For a run with `SGD` whose reference is a later
    step, the prediction starts with momentum 0.

    For `Adam`, `AdamW` and `RMSprop` the kernel is J P Jᵀ, where P = 1/(√v̂ + ε) keeps its value at
    the reference, and Adam's average of gradients counts as momentum β₁. There is no P before the
    first step: pass `anchor_at=N`, a step at which v̂ has settled. As P follows the gradients, a
    message says over how many steps v̂ is an average, and the prediction covers fewer steps. For
    every loss it is a prediction of discrete steps, which starts with the momentum at the
    reference. Nothing is predicted for these optimizers at step 0, for other optimizers, for
    several optimizers of one network, for Nesterov's step and for dampening. Then there is a
    warning, and only `forecast/actual` is logged.

    Θ_0 is computed once, with all outputs. It has (N·O)² numbers, which checkpoints contain as
    well. For losses other than squared error, a differential equation of N·O unknowns is solved.

    Args:
        probe: The samples with targets, in a form that `NTKMonitor` accepts. The forecast is about
            the samples of the probe only; for a forecast of the whole training pass all training
            samples. There is a warning if the training has more.
        loss: The loss that is trained, as in `StabilityEdge`.
        **options: Further arguments of `NTKMonitor`; `prefix` is "forecast" by default.

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
            metrics=("param_drift",),  # at least one is required, and this one takes no time
            output="full",
            loss=loss,
            log_figures=False,
            **options,
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is due, and check whether the optimizer is as the prediction assumes."""
        if trainer.is_global_zero and not has_averaged_weights(trainer):
            self._session.follow(trainer.optimizers, steps_taken(trainer))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.is_global_zero:
            self._session.say_if_smaller(_training_samples(trainer))


def _training_samples(trainer: Trainer) -> int:
    """The number of training samples, or 0 if it is not known."""
    loader = trainer.train_dataloader
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, Sized):
        return len(loader.dataset)
    return 0
