"""What all callbacks of this package share: hooks of the Trainer around an `Observer`."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from torch_ntk._types import Output, ParameterSelection
from torch_ntk.monitor import (
    InputFn,
    Observer,
    Probe,
    ProbeLike,
    Schedule,
    Verdict,
    check_probe,
    has_diverged,
    probe_from_batch,
    snapshot,
)

from . import _loggers
from ._network import ForwardFn, adapted, adapted_selection, find_network, first_measurement
from ._results import columns, judged, log_observation
from ._settings import check_settings, refuse_shared_names
from ._trainer import (
    has_averaged_weights,
    is_last_epoch,
    lent_weights,
    refuse_sharded,
    steps_taken,
    swaps_weights,
    unlogged,
    weights_of,
)

_LATE = "{} starts at step {}: drift and gap are measured from the parameters of that step."


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
        probe: ProbeLike,
        *,
        metrics: Sequence[str],
        every_n_steps: int | None,
        schedule: str,
        output: Output,
        log_figures: bool,
        max_overhead: float,
        on_error: str,
        prefix: str,
        network: str | None,
        input_fn: InputFn | None,
        forward_fn: ForwardFn | None,
        params: ParameterSelection,
        batch_size: int | None,
        dtype: torch.dtype | None,
        method: str,
    ) -> None:
        self._probe = check_probe(probe)
        self._schedule = Schedule(every_n_steps, schedule, max_overhead)
        self._observer = Observer(
            metrics,
            output=output,
            params=params if forward_fn is None else adapted_selection(params),
            batch_size=batch_size,
            dtype=dtype,
            method=method,
        )
        check_settings(
            on_error=on_error,
            prefix=prefix,
            network=network,
            input_fn=input_fn,
            forward_fn=forward_fn,
            log_figures=log_figures,
        )
        self.on_error = on_error
        self.prefix = prefix
        self.network = network
        self.log_figures = log_figures
        self._input_fn = input_fn
        self._forward_fn = forward_fn
        self._begin()

    def _begin(self) -> None:
        self._observer.reset()
        self._last_step: int | None = None
        self._trained: tuple[int, dict[str, Tensor]] | None = None
        self._has_run = False
        self._diverged_at: int | None = None
        self._module: weakref.ref[LightningModule] | None = None  # the one of the last run
        self._measured: nn.Module | None = None
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to one process: launchers send callbacks to others."""
        return {**vars(self), "_module": None, "_measured": None}

    # ------------------------------------------------------------------ results
    @property
    def history(self) -> dict[str, list[float]]:
        """Everything measured: `"step"` and each metric by its logged name; NaN where missing."""
        return columns(self._observer.history, self._tag)

    @property
    def verdict(self) -> Verdict:
        """The regime of the training, with the reason; from the last measurement."""
        return judged(self._observer, self._diverged_at)

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
            self._warn_once(
                "logger",
                f"The Trainer has no logger: {type(self).__name__} measures, but its values are "
                "only in its `history`. Pass logger=TensorBoardLogger(...) to see curves.",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time that measurements are a share of."""
        self._has_run = True
        self._module = weakref.ref(pl_module)
        self._schedule.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is due: before the batch, so that step s means after s steps."""
        if not trainer.is_global_zero or has_averaged_weights(trainer):
            return
        step = steps_taken(trainer)
        if step == self._last_step:  # the same parameters: an accumulating batch, or a restart
            return
        # Also where the first measurement failed: a network that cannot be measured is not
        # tried again at every step.
        if self._last_step is None or self._schedule.due(step):
            self._guarded(trainer, pl_module, step, batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step here: at the end of training the weights may be averaged ones."""
        if not trainer.is_global_zero or has_averaged_weights(trainer):
            return
        if is_last_epoch(trainer):
            self._finish(trainer, pl_module)
        elif swaps_weights(trainer):  # training may yet be stopped by what runs after this hook
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
        self._trained = self._measured = None  # neither is kept alive by a callback
        if self.verdict.regime != "unknown" and self._last_step is not None:
            text = str(self.verdict)
            _loggers.log_text(trainer, self._tag("verdict"), text, self._last_step)
        _loggers.flush(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write out what has been measured; an interrupted run ends here."""
        if trainer.is_global_zero:
            _loggers.flush(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Anchor (θ_0, probe, Θ_0, f_0) and history: tensors and plain values only."""
        return {
            "observer": self._observer.state_dict(),
            "last_step": self._last_step,
            "diverged_at": self._diverged_at,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, anchored where the first run was."""
        self._observer.load_state_dict(state_dict["observer"])
        last = state_dict["last_step"]
        self._last_step = None if last is None else int(last)
        self._diverged_at = state_dict.get("diverged_at")
        self._has_run = False

    # ------------------------------------------------------------------ measuring
    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = steps_taken(trainer)
        if self._observer.anchor is not None and step != self._last_step:
            self._guarded(trainer, pl_module, step, None, last=True)

    def _guarded(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        step: int,
        batch: Any,
        last: bool = False,
    ) -> None:
        """Measure and log; what goes wrong ends the run only if that is what a user expects."""
        started = time.perf_counter()
        self._last_step = step
        network: nn.Module = pl_module
        try:
            with unlogged(pl_module):
                if self._observer.anchor is None:
                    with first_measurement(type(self).__name__, pl_module):
                        network = self._find(pl_module)
                        self._observer.drop_anchor(network, self._take_probe(batch), step)
                    if step > 0:
                        self._warn_once("late", _LATE.format(type(self).__name__, step))
                network = self._find(pl_module)
                seen = self._observer.measure(network, step)
            self._diverged_at = None
            log_observation(
                trainer, self._observer, seen, self._tag, draw=self.log_figures, last=last
            )
        except Exception as error:  # anything that a network's forward may raise
            if has_diverged(network):
                self._diverged_at = step if self._diverged_at is None else self._diverged_at
                self._warn_once(
                    "diverged",
                    f"The network has NaN or infinite parameters at step {step}: the kernel is "
                    "not measured. Lower the learning rate.",
                )
            elif self.on_error == "raise":
                raise
            else:
                self._warn_once(str(error), f"No measurement at step {step}: {error}")
        finally:
            self._schedule.spend(time.perf_counter() - started)

    def _refuse_twins(self, trainer: Trainer) -> None:
        """Raise if another callback would write to the same curves or the same state."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self or not isinstance(other, KernelCallback):
                continue
            if other.prefix == self.prefix:
                mine, theirs = self._observer.metrics, other._observer.metrics
                refuse_shared_names(
                    self.prefix, type(self).__name__, mine, type(other).__name__, theirs
                )

    def _find(self, pl_module: LightningModule) -> nn.Module:
        fn = self._forward_fn
        network = find_network(pl_module, self.network, any_form=fn is not None)
        self._measured = adapted(network, fn, self._measured)
        return self._measured

    def _take_probe(self, batch: Any) -> Probe:
        if isinstance(self._probe, Probe):
            return self._probe
        return probe_from_batch(batch, self._probe, self._input_fn)

    def _tag(self, name: str) -> str:
        own = self.own if name in ("seconds", "verdict", "anchor_step") else ""
        return f"{self.prefix}/{own}{name}"

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=3)
