"""`KernelCallback`, the base class of all callbacks, which connects the Trainer to a `Session`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from typing_extensions import Unpack

from torch_ntk._checks import (
    check_bool,
    check_choice,
    check_positive_int,
    describe,
    type_error,
    value_error,
)
from torch_ntk.monitor import ProbeLike, Results, Verdict
from torch_ntk.monitor.loop import Session, SessionOptions
from torch_ntk.monitor.reference import snapshot
from torch_ntk.monitor.stability import Training

from . import _loggers
from ._checkpoint_state import CheckpointState
from ._layout import layout
from ._network import find_network, first_measurement
from ._results import log_observation, writing
from ._trainer import (
    batches_seen,
    callbacks_of,
    has_averaged_weights,
    is_last_epoch,
    length_of,
    lent_weights,
    patience,
    refuse_sharded,
    steps_taken,
    swaps_weights,
    unlogged,
    weights_of,
)

_SLOW = 0.25
"""A measurement that takes more than this share of the processes' timeout causes a warning."""
_KEEPS_WAITING = (
    "A measurement of {} took {:.3g} s while the other processes waited; they fail after {:.3g} s. "
    "Take a smaller probe, or pass Trainer(strategy=DDPStrategy(timeout=...))."
)


class KernelCallback(Results, Callback):
    """Measures a network before a training batch and logs the result; see `NTKMonitor`.

    A measurement at step s uses the parameters after s optimizer steps and is logged at s. Loggers
    show the loss of the next batch, which is computed with the same parameters, at this step, too.
    The first process measures. The others compute a part of kernels that take long, and receive the
    values at points of the training that all processes reach.

    A callback continues if the same Trainer fits once more, or from its state in a checkpoint. In a
    new Trainer, or with another model, it starts again with a new reference and an empty history.
    """

    own = ""
    """What is put before names that several callbacks with one prefix would share, as `seconds`."""

    session_type = Session
    """The class that measures."""

    def __init__(
        self,
        probe: ProbeLike | None,
        *,
        network: str | None = None,
        log_figures: bool = True,
        figure_every: int | None = None,
        tensorboard_layout: bool = True,
        theta_0: str = "inside",
        **options: Unpack[SessionOptions],
    ) -> None:
        name = type(self).__name__
        self._session = self.session_type(probe, owner=name, own=self.own, **options)
        self._session.say = rank_zero_info
        if network is not None and not isinstance(network, str):
            raise type_error(
                "network",
                "the name of a submodule, or None",
                describe(network),
                "Pass network='encoder' for what the LightningModule has as self.encoder.",
            )
        remedy = "It is kept inside each checkpoint, or in one file."
        self.theta_0 = check_choice("theta_0", theta_0, ("inside", "beside"), remedy)
        if figure_every is not None:
            remedy = "None draws at the 1st, 2nd, 4th, … point."
            check_positive_int("figure_every", figure_every, remedy)
        self.network, self.figure_every = network, figure_every
        self.log_figures = check_bool("log_figures", log_figures)
        self.tensorboard_layout = check_bool("tensorboard_layout", tensorboard_layout)
        self._begin()

    def _begin(self) -> None:
        """Forget the reference and everything that was measured."""
        self._session.reset()
        self._trained: tuple[int, dict[str, Tensor]] | None = None
        self._has_run = False
        self._shared: Verdict | None = None
        self._is_first = True  # of the processes
        self._told: tuple[int | None, str] = (None, "")  # the verdict's last step, and its regime
        self._state = CheckpointState(self.theta_0)
        self._module: weakref.ref[LightningModule] | None = None  # the one of the last run

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without the weak reference, since launchers pickle callbacks."""
        return {**vars(self), "_module": None}

    # ------------------------------------------------------------------ results
    @property
    def prefix(self) -> str:
        """The first part of the logged names."""
        return self._session.settings.prefix

    @property
    def on_error(self) -> str:
        """`"raise"` if a failing measurement ends the run, `"warn"` if it causes a warning."""
        return self._session.settings.on_error

    # ------------------------------------------------------------------ hooks
    @property
    def state_key(self) -> str:
        """The key of this callback's state in checkpoints, which depends on its prefix."""
        return f"{type(self).__qualname__}[{self.prefix}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the Trainer, and start again if it or the model is new.

        Raises:
            ValueError: The Trainer shards parameters, or another callback has the same prefix and
                measures the same.
        """
        if stage != "fit":
            return
        refuse_sharded(trainer, type(self).__name__)
        self._is_first = trainer.is_global_zero
        self._refuse_same_prefix(trainer)
        # A checkpoint is loaded after this hook, so that a resumed run has its reference again.
        is_other = self._module is not None and self._module() is not pl_module
        if self._has_run and (is_other or steps_taken(trainer) == 0):
            self._begin()
        if not trainer.loggers and trainer.is_global_zero:
            self._session.warn_once(
                "logger",
                f"The Trainer has no logger: {type(self).__name__} measures, but its values are "
                "only in its `history`. Pass logger=TensorBoardLogger(...) to see curves.",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting the running time, and log which curves TensorBoard shows together."""
        self._has_run = True
        self._module = weakref.ref(pl_module)
        self._session.schedule.start()
        self._session.schedule.length = length_of(trainer)
        if trainer.world_size > 1:
            self._session.look_for_others()
        self._state.start(trainer)
        # TensorBoard reads one layout for a run, so that the first callback logs it for all.
        grouped = [c for c in callbacks_of(trainer, KernelCallback) if c.tensorboard_layout]
        if trainer.is_global_zero and grouped and grouped[0] is self:
            with writing(self._session):
                _loggers.log_layout(trainer, layout(c._session for c in grouped))

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the validation probe from the first validation batch, if it is a number."""
        if trainer.is_global_zero and self._session.needs_validation_batch:
            with unlogged(trainer, pl_module):
                self._session.offer_validation(lambda: self._find(pl_module), batch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is due. Before the batch, s optimizer steps have been taken at step s."""
        if has_averaged_weights(trainer):
            return
        step = steps_taken(trainer)
        if not trainer.is_global_zero:
            self._assist(trainer, pl_module, batch)
            return
        if self._session.is_due(step):
            self._measure(trainer, pl_module, step, batch)
        if self._session.needs_every_step:
            self._session.remember(self._find(pl_module), step, trainer.optimizers)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Send the values to every process before other callbacks use them."""
        if self._shared is None or trainer.is_last_batch:
            self._share(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the values to every process, as other callbacks use them after a validation."""
        if not trainer.sanity_checking:
            self._share(trainer)

    def _share(self, trainer: Trainer) -> None:
        """Send the last values and the verdict from the first process to all.

        Every process calls this at the same points of the training, as a broadcast requires.
        """
        rows, tag = self._session.record.history, self._session.tag
        own = {tag(n): v for n, v in rows[-1].items() if n != "step"} if rows else {}
        found = (own, astuple(self.verdict))
        if trainer.world_size > 1:
            found = trainer.strategy.broadcast(found, src=0)
        values, words = found
        trainer.callback_metrics.update({n: torch.tensor(v) for n, v in values.items()})
        self._shared = Verdict(*words)

    @property
    def verdict(self) -> Verdict:
        """The regime of the training and the reason for it, from the last measurement.

        Other processes than the first return the verdict that the first one has sent.
        """
        is_own = self._is_first and bool(self._session.record.history)
        return super().verdict if is_own or self._shared is None else self._shared

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step before callbacks replace the weights by averaged ones."""
        if has_averaged_weights(trainer):
            return
        if not trainer.is_global_zero:
            if is_last_epoch(trainer):
                self._assist(trainer, pl_module)
        elif is_last_epoch(trainer):
            self._finish(trainer, pl_module)
        elif swaps_weights(trainer):  # a callback may still stop the training after this hook
            self._trained = (steps_taken(trainer), snapshot(weights_of(pl_module)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step if that has not been done, and log the verdict."""
        if trainer.is_global_zero:
            if not swaps_weights(trainer):
                self._finish(trainer, pl_module)
            elif self._trained is not None and self._trained[0] == steps_taken(trainer):
                with lent_weights(pl_module, self._trained[1]):
                    self._finish(trainer, pl_module)
        elif not swaps_weights(trainer):
            self._assist(trainer, pl_module)
        self._trained = None
        self._session.release()
        self._share(trainer)
        if not trainer.is_global_zero:
            return
        with writing(self._session):
            self._write_verdict(trainer)
            _loggers.flush(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Log the verdict and flush the loggers when training ends by an exception."""
        if trainer.is_global_zero:
            with writing(self._session):
                self._write_verdict(trainer)
                _loggers.flush(trainer)

    def _write_verdict(self, trainer: Trainer) -> None:
        """Log the verdict if there is one, unless that has been done at this step."""
        step, found = self._session.last_step, self.verdict
        if found.regime != "unknown" and step is not None and step != self._told[0]:
            tag = self._session.tag("verdict")
            _loggers.log_text(trainer, tag, str(found), found.text, step)
            self._told = (step, found.regime)

    def state_dict(self) -> dict[str, Any]:
        """The reference (θ_0, probe, Θ_0, f_0) and the history, as tensors and plain values."""
        return self._state.saved(self._session)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the folder of the checkpoint; `load_state_dict` is called after this."""
        self._state.resume(trainer)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, with the reference of the first run.

        Raises:
            ValueError: The state cannot be used. If only its file of θ_0 is missing, and `on_error`
                is `"warn"`, the callback warns and starts again.
        """
        state = None
        with self._session.forgiving(ValueError, f"{type(self).__name__} begins anew: {{}}"):
            state = self._state.found(state_dict)
        if state is not None:
            self._session.load_state_dict(state)
            self._has_run = False

    # ------------------------------------------------------------------ measuring
    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step, unless it has been measured or there is no reference."""
        step = steps_taken(trainer)
        if self._session.record.reference is not None and step != self._session.last_step:
            self._measure(trainer, pl_module, step, None, last=True)

    def _assist(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        """On another process than the first: take a share of its kernel if it has asked for one."""
        if self._session.shared_kernel is not None:
            with unlogged(trainer, pl_module):
                self._session.assist(lambda: self._find(pl_module), steps_taken(trainer), batch)

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        step: int,
        batch: Any,
        last: bool = False,
    ) -> None:
        """Measure, log what was measured, and warn if other processes wait too long.

        The batch is the next one, or None at the end; the last measurement has figures in any case.
        """
        session = self._session
        with session.attempt(step, pl_module):
            with unlogged(trainer, pl_module):
                training = Training(pl_module, trainer.optimizers)
                if session.record.reference is None:
                    with first_measurement(type(self).__name__, pl_module):
                        session.begin(self._find(pl_module), batch, step, training)
                network, batches = self._find(pl_module), batches_seen(trainer)
                seen = session.measure(network, step, training, batches=batches, batch=batch)
            draw = self.log_figures and (last or session.draws(self.figure_every))
            log_observation(trainer, session, seen, draw=draw, document=self.document)
            if trainer.world_size == 1:
                self._share(trainer)
        if self.verdict.regime != self._told[1]:
            with writing(session):
                self._write_verdict(trainer)
        spent, limit = session.schedule.last_cost, patience(trainer)
        if limit is not None and spent > _SLOW * limit:
            session.warn_once("slow", _KEEPS_WAITING.format(type(self).__name__, spent, limit))

    def _find(self, pl_module: LightningModule) -> nn.Module:
        """The module that is measured."""
        any_form = self._session.settings.forward_fn is not None
        return find_network(pl_module, self.network, any_form=any_form)

    def _refuse_same_prefix(self, trainer: Trainer) -> None:
        """Raise a `ValueError` if another callback would log the same curves, or the same state."""
        mine = set(self._session.record.metrics)
        for other in callbacks_of(trainer, KernelCallback):
            if other is self or other.prefix != self.prefix:
                continue
            is_same_kind = type(other).__name__ == type(self).__name__
            if is_same_kind or mine & set(other._session.record.metrics):
                raise value_error(
                    "prefix",
                    "different for callbacks of a Trainer that measure the same",
                    f"prefix={self.prefix!r} for {type(self).__name__} and {type(other).__name__}",
                    "Pass prefix='...' to each, or their curves and states would mix.",
                )
