"""What every monitor of a training does, whoever runs the training."""

from __future__ import annotations

import contextlib
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from .._types import Output, ParameterSelection
from ._adapted import ForwardFn, adapted, adapted_selection
from ._anchor import has_diverged
from ._history_plot import history_plot
from ._observation import Observation, columns
from ._observer import Observer
from ._probe import DEFAULT_PROBE, InputFn, Probe, ProbeLike, probe_from_batch, read_probe
from ._scalars import METRICS
from ._schedule import Schedule
from ._settings import check_conduct
from ._stability import Training, edge_in_words, passes_the_edge
from ._training_loss import LossLike
from ._validation import Validation
from ._verdict import Verdict, verdict

_LATE = "{} starts at step {}: drift and gap are measured from the parameters of that step."
_NO_VALIDATION = (
    "No validation batch came before the first measurement: there is no validation probe. Pass "
    "validation_probe=(x, y), or let the Trainer begin with a sanity check."
)
_OF_ONE = ("seconds", "overhead", "batches", "verdict", "anchor_step")


class Watch:
    """A probe, a schedule and an observer, and what becomes of errors.

    The core of `Monitor` and of the Lightning callbacks, which bring the network to it.

    Args:
        probe: As in `torch_ntk.callbacks.NTKMonitor`, like the other arguments.
        owner: Who warnings speak of.
        own: Begins the names that several monitors with one prefix would share: seconds, verdict.
        metrics: What to measure.
        validation_probe: Samples on which drift, alignment and gap are measured as well, or None.
        every_n_steps: See `Schedule`.
        at_steps: See `Schedule`.
        schedule: See `Schedule`.
        max_overhead: See `Schedule`.
        on_error: `"raise"` or `"warn"`.
        prefix: The first part of the names in the history.
        input_fn: From a batch to `x` or `(x, y)`.
        forward_fn: From a network and `x` to outputs `[N, O]`.
        output: See `Observer`.
        params: See `Observer`.
        batch_size: See `Observer`.
        dtype: See `Observer`.
        method: See `Observer`.
        loss: See `Observer`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    extra: tuple[str, ...] = ()  # what a subclass measures besides the observer's metrics

    def __init__(
        self,
        probe: ProbeLike | None,
        *,
        owner: str,
        own: str = "",
        metrics: Sequence[str] = METRICS,
        validation_probe: ProbeLike | None = None,
        every_n_steps: int | None = None,
        at_steps: Iterable[int] | None = None,
        schedule: str = "linear",
        max_overhead: float = 0.05,
        on_error: str = "raise",
        prefix: str = "ntk",
        input_fn: InputFn | None = None,
        forward_fn: ForwardFn | None = None,
        output: Output = "mean",
        params: ParameterSelection = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        method: str = "auto",
        loss: LossLike = "auto",
    ) -> None:
        self.schedule = Schedule(every_n_steps, schedule, max_overhead, at_steps)
        self.observer = Observer(
            metrics,
            output=output,
            params=params if forward_fn is None else adapted_selection(params),
            batch_size=batch_size,
            dtype=dtype,
            method=method,
            loss=loss,
        )
        check_conduct(on_error=on_error, prefix=prefix, input_fn=input_fn, forward_fn=forward_fn)
        self._probe = read_probe("probe", DEFAULT_PROBE if probe is None else probe, input_fn)
        self.validation = (
            None
            if validation_probe is None
            else Validation(validation_probe, input_fn, self.observer)
        )
        self.on_error, self.prefix, self.own = on_error, prefix, own
        self.forward_fn = forward_fn
        self._owner, self._input_fn = owner, input_fn
        self.begin()

    def begin(self) -> None:
        """Forget everything: the next measurement is the first one."""
        self.observer.reset()
        if self.validation is not None:
            self.validation.begin()
        self.last_step: int | None = None
        self.diverged_at: int | None = None
        self._network: nn.Module | None = None
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to one process: launchers send monitors to others."""
        return {**vars(self), "_network": None}

    # ------------------------------------------------------------------ results
    @property
    def history(self) -> dict[str, list[float]]:
        """Everything measured: `"step"` and each metric by its logged name; NaN where missing."""
        found = columns(self.observer.history)
        return {n if n == "step" else self.tag(n): column for n, column in found.items()}

    @property
    def verdict(self) -> Verdict:
        """The regime of the training, from the last measurement."""
        rows, anchor = self.observer.history, self.observer.anchor
        # At the anchor itself nothing is known yet.
        has_moved = bool(rows) and anchor is not None and rows[-1]["step"] > anchor.step
        return verdict(rows[-1] if has_moved else {}, self.diverged_at)

    def plot(self) -> tuple[Figure, np.ndarray[Any, Any]]:
        """The curves, with the verdict above them: the figure and its axes `[panels]`.

        Raises:
            ValueError: Nothing was measured.
        """
        lines = textwrap.wrap(str(self.verdict), 110)
        return history_plot(self.observer.history, title="\n".join(lines))

    @property
    def needs_batch(self) -> bool:
        """Whether the probe is to be taken from the first batch."""
        return not isinstance(self._probe, Probe)

    def tag(self, name: str) -> str:
        """The name under which a metric is logged."""
        return f"{self.prefix}/{self.own if name in _OF_ONE else ''}{name}"

    # ------------------------------------------------------------------ measuring
    def is_due(self, step: int) -> bool:
        """Whether to measure at `step`, at which nothing has been tried yet."""
        if step == self.last_step:  # the same parameters: an accumulating batch, or a restart
            return False
        # Also where the first measurement failed: a network that cannot be measured is not
        # tried again at every step.
        return self.last_step is None or self.schedule.due(step)

    @contextlib.contextmanager
    def attempt(self, step: int, module: nn.Module) -> Iterator[None]:
        """Within it, what goes wrong ends the run only if that is what a user expects.

        The time spent within it counts as overhead.

        Args:
            step: Optimizer steps taken.
            module: What is in training.
        """
        started = time.perf_counter()
        self.last_step = step
        self._started = started
        try:
            yield
            self.diverged_at = None
        except Exception as error:  # anything that a network's forward may raise
            network = module if self._network is None else self._network
            if has_diverged(network):
                self.diverged_at = step if self.diverged_at is None else self.diverged_at
                self.warn_once(
                    "diverged",
                    f"The network has NaN or infinite parameters at step {step}: the kernel is "
                    "not measured. Lower the learning rate.",
                )
            elif self.on_error == "raise":
                raise
            else:
                self.warn_once(str(error), f"No measurement at step {step}: {error}")
        finally:
            self.schedule.spend(time.perf_counter() - started)

    def drop_anchor(self, network: nn.Module, batch: Any, step: int) -> None:
        """Keep the network's present state as the point of comparison.

        Args:
            network: The module with the parameters.
            batch: Where the probe is taken from if it was given as a number of samples.
            step: Optimizer steps taken.
        """
        module = self._adapted(network)
        # First: it is taken again with the other one if that fails, which ends the attempts.
        if self.validation is not None and not self.validation.drop_anchor(module, step):
            self.warn_once("validation", _NO_VALIDATION)
        self.observer.drop_anchor(module, self._take_probe(batch), step)
        if step > 0:
            self.warn_once("late", _LATE.format(self._owner, step))

    def offer_validation(self, batch: Any) -> None:
        """Take the validation probe from a batch, if it was given as a number of samples."""
        if self.validation is None or not self.validation.wants_batch:
            return
        try:
            self.validation.offer(batch)
        except (TypeError, ValueError) as error:
            if self.on_error == "raise":
                raise
            self.warn_once("validation", f"No validation probe: {error}")

    def measure(
        self, network: nn.Module, step: int, training: Training, *, batches: int
    ) -> Observation:
        """Measure within `attempt`, after `drop_anchor`.

        Args:
            network: The module with the parameters.
            step: Optimizer steps taken.
            training: What moves the network.
            batches: Training batches seen.
        """
        module = self._adapted(network)
        seen = self.observer.measure(module, step, training)
        if self.validation is not None:
            beside = self.validation.measure(module, step)
            seconds = seen.scalars["seconds"] + beside.pop("seconds", 0.0)
            self.observer.note(seen, **beside, seconds=seconds)
        if passes_the_edge(self.observer.history):
            self.warn_once("edge", f"{self._owner}: {edge_in_words(seen.scalars, step)}")
        spent = time.perf_counter() - self._started
        self.observer.note(seen, batches=float(batches), overhead=self.schedule.share(spent))
        return seen

    def release(self) -> None:
        """Keep no network alive."""
        self._network = None

    def warn_once(self, key: str, text: str) -> None:
        """Warn unless that has been done under this key."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=3)

    def _adapted(self, network: nn.Module) -> nn.Module:
        self._network = adapted(network, self.forward_fn, self._network)
        return self._network

    def _take_probe(self, batch: Any) -> Probe:
        if isinstance(self._probe, Probe):
            return self._probe
        return probe_from_batch(batch, self._probe, self._input_fn)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Anchor (θ_0, probe, Θ_0, f_0) and history: tensors and plain values only."""
        return {
            "observer": self.observer.state_dict(),
            "last_step": self.last_step,
            "diverged_at": self.diverged_at,
            "validation": None if self.validation is None else self.validation.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, anchored where the first run was.

        Raises:
            ValueError: It cannot be used; nothing changes then.
        """
        self.observer.load_state_dict(state["observer"])
        if self.validation is not None:
            self.validation.load_state_dict(state.get("validation"), self.observer.anchor)
        last = state["last_step"]
        self.last_step = None if last is None else int(last)
        self.diverged_at = state.get("diverged_at")
