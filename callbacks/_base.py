"""What all callbacks of this package share: hooks of the Trainer around a `Watch`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import Unpack

from torch_ntk.monitor import (
    ProbeLike,
    Training,
    Verdict,
    Watch,
    WatchOptions,
    snapshot,
)

from . import _loggers
from ._keeper import Keeper
from ._layout import layout
from ._network import find_network, first_measurement
from ._results import log_observation, writing
from ._settings import check_settings, refuse_shared_names
from ._trainer import (
    batches_seen,
    has_averaged_weights,
    is_last_epoch,
    lent_weights,
    patience,
    refuse_sharded,
    steps_taken,
    swaps_weights,
    unlogged,
    weights_of,
)

_SLOW = 0.25
"""The share of the time that processes wait for each other, from which on a warning says so."""
_KEEPS_WAITING = (
    "A measurement of {} took {:.3g} s while the other processes waited; they fail after {:.3g} s. "
    "Take a smaller probe, or pass Trainer(strategy=DDPStrategy(timeout=...))."
)


class KernelCallback(Callback):
    """Measures a network before a training batch and logs the result; see `NTKMonitor`.

    A measurement at step s sees the parameters after s optimizer steps and is logged at s, the
    point at which loggers also show the loss of the batch that those parameters meet next. It
    runs on the first process only and starts no communication.

    A callback goes on where it was if the same Trainer fits once more, or from its state in a
    checkpoint. In a new Trainer, or with another model, it begins anew, with a new anchor and an
    empty history.
    """

    own = ""
    """Begins the names that several callbacks with one prefix would share: seconds, verdict."""

    def __init__(
        self,
        probe: ProbeLike | None,
        *,
        network: str | None = None,
        log_figures: bool = True,
        figure_every: int | None = None,
        tensorboard_layout: bool = True,
        theta_0: str = "inside",
        **options: Unpack[WatchOptions],
    ) -> None:
        self._watch = Watch(probe, owner=type(self).__name__, own=self.own, **options)
        check_settings(
            network=network,
            log_figures=log_figures,
            figure_every=figure_every,
            tensorboard_layout=tensorboard_layout,
            theta_0=theta_0,
        )
        self.network = network
        self.log_figures = log_figures
        self.figure_every = figure_every
        self.tensorboard_layout = tensorboard_layout
        self.theta_0 = theta_0
        self._begin()

    def _begin(self) -> None:
        self._watch.begin()
        self._trained: tuple[int, dict[str, Tensor]] | None = None
        self._has_run = False
        self._keeper = Keeper(self.theta_0)
        self._module: weakref.ref[LightningModule] | None = None  # the one of the last run

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to one process: launchers send callbacks to others."""
        return {**vars(self), "_module": None}

    # ------------------------------------------------------------------ results
    @property
    def prefix(self) -> str:
        """The first part of the logged names."""
        return self._watch.prefix

    @property
    def on_error(self) -> str:
        """What a failing measurement does: `"raise"` or `"warn"`."""
        return self._watch.on_error

    @property
    def history(self) -> dict[str, list[float]]:
        """Everything measured: `"step"` and each metric by its logged name; NaN where missing."""
        return self._watch.history

    @property
    def verdict(self) -> Verdict:
        """The regime of the training, with the reason; from the last measurement."""
        return self._watch.verdict

    def plot(self) -> tuple[Figure, np.ndarray[Any, Any]]:
        """The curves, with the verdict above them: the figure and its axes `[panels]`.

        Raises:
            ValueError: Nothing was measured.
        """
        return self._watch.plot()

    # ------------------------------------------------------------------ hooks
    @property
    def state_key(self) -> str:
        """Names this callback's state in checkpoints; the prefix tells several apart."""
        return f"{type(self).__qualname__}[{self.prefix}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could only fail later; begin anew in a new Trainer or for another model."""
        if stage != "fit":
            return
        refuse_sharded(trainer, type(self).__name__)
        self._refuse_twins(trainer)
        # A checkpoint is loaded after this, so that a resumed run keeps its anchor.
        is_other = self._module is not None and self._module() is not pl_module
        if self._has_run and (is_other or steps_taken(trainer) == 0):
            self._begin()
        if not trainer.loggers and trainer.is_global_zero:
            self._watch.warn_once(
                "logger",
                f"The Trainer has no logger: {type(self).__name__} measures, but its values are "
                "only in its `history`. Pass logger=TensorBoardLogger(...) to see curves.",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time that measurements are a share of; group the curves."""
        self._has_run = True
        self._module = weakref.ref(pl_module)
        self._watch.schedule.start()
        self._keeper.start(trainer)
        # TensorBoard reads one layout for a run: the first callback speaks for all.
        grouped = [c for c in kernel_callbacks(trainer) if c.tensorboard_layout]
        if trainer.is_global_zero and grouped and grouped[0] is self:
            with writing(self._watch):
                _loggers.log_layout(trainer, layout(c._watch for c in grouped))

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the validation probe from the first batch that passes, if it is a number."""
        if trainer.is_global_zero:
            self._watch.offer_validation(batch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is due: before the batch, so that step s means after s steps."""
        if not trainer.is_global_zero or has_averaged_weights(trainer):
            return
        step = steps_taken(trainer)
        if self._watch.is_due(step):
            self._measure(trainer, pl_module, step, batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step here: at the end of training the weights may be averaged ones."""
        if not trainer.is_global_zero or has_averaged_weights(trainer):
            return
        if is_last_epoch(trainer):
            self._finish(trainer, pl_module)
        elif swaps_weights(trainer):  # what runs after this hook may stop the training
            self._trained = (steps_taken(trainer), snapshot(weights_of(pl_module)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step if that has not been done, and say what the curves say."""
        if not trainer.is_global_zero:
            return
        if not swaps_weights(trainer):
            self._finish(trainer, pl_module)
        elif self._trained is not None and self._trained[0] == steps_taken(trainer):
            with lent_weights(pl_module, self._trained[1]):
                self._finish(trainer, pl_module)
        self._trained = None
        self._watch.release()
        last, found = self._watch.last_step, self.verdict
        with writing(self._watch):
            if found.regime != "unknown" and last is not None:
                _loggers.log_text(trainer, self._watch.tag("verdict"), str(found), last)
            _loggers.flush(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write out what has been measured; an interrupted run ends here."""
        if trainer.is_global_zero:
            with writing(self._watch):
                _loggers.flush(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Anchor (θ_0, probe, Θ_0, f_0) and history: tensors and plain values only."""
        return self._keeper.saved(self._watch)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note where the checkpoint lies; its state comes next."""
        self._keeper.resume(trainer)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, anchored where the first run was.

        Raises:
            ValueError: It cannot be used. Without its file of θ_0, `on_error="warn"` begins anew.
        """
        try:
            state = self._keeper.found(state_dict)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            self._watch.warn_once(str(error), f"{type(self).__name__} begins anew: {error}")
            return
        self._watch.load_state_dict(state)
        self._has_run = False

    # ------------------------------------------------------------------ measuring
    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = steps_taken(trainer)
        if self._watch.observer.anchor is not None and step != self._watch.last_step:
            self._measure(trainer, pl_module, step, None, last=True)

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        step: int,
        batch: Any,
        last: bool = False,
    ) -> None:
        watch = self._watch
        with watch.attempt(step, pl_module):
            with unlogged(trainer, pl_module):
                if watch.observer.anchor is None:
                    with first_measurement(type(self).__name__, pl_module):
                        watch.drop_anchor(self._find(pl_module), batch, step)
                training = Training(pl_module, trainer.optimizers)
                seen = watch.measure(
                    self._find(pl_module), step, training, batches=batches_seen(trainer)
                )
            log_observation(
                trainer, watch, seen, draw=self.log_figures, every=self.figure_every, last=last
            )
        spent, limit = watch.schedule.last_cost, patience(trainer)
        if limit is not None and spent > _SLOW * limit:
            watch.warn_once("slow", _KEEPS_WAITING.format(type(self).__name__, spent, limit))

    def _find(self, pl_module: LightningModule) -> nn.Module:
        any_form = self._watch.forward_fn is not None
        return find_network(pl_module, self.network, any_form=any_form)

    def _refuse_twins(self, trainer: Trainer) -> None:
        """Raise if another callback would write to the same curves or the same state."""
        for other in kernel_callbacks(trainer):
            if other is not self and other.prefix == self.prefix:
                mine, theirs = self._watch.observer.metrics, other._watch.observer.metrics
                refuse_shared_names(
                    self.prefix, type(self).__name__, mine, type(other).__name__, theirs
                )


def kernel_callbacks(trainer: Trainer) -> list[KernelCallback]:
    """The callbacks of this kind, in their order."""
    every = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in every if isinstance(c, KernelCallback)]
