"""One monitored training, whoever runs it."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from ..._checks import ArgumentTypeError, ArgumentValueError, describe, value_error
from ..measure._adapted_network import adapted, in_own_names
from ..measure._evaluation import DIRECTIONS, OptimizerError
from ..measure._metric import VALIDATION, Curve
from ..measure._metrics import OVERHEAD, REGISTRY
from ..measure._observation import Observation
from ..measure._record import Record
from ..measure._statistics import recalibrated, statistics_of
from ..page._pictures import Pictures
from ..probe._probe import (
    DEFAULT_PROBE,
    Probe,
    ProbeLike,
    Unread,
    _DefaultCount,
    coupled_probe,
    read_probe,
)
from ..probe._reader import Reader
from ..reference._reference import Reference, has_diverged
from ..stability._stability import Training, edge_in_words, passes_the_edge
from ._interruption import Stopped, ended_by_sigterm
from ._part import part_that_works
from ._settings import SessionOptions, Settings
from ._shared_kernel import SharedKernel

_logger = logging.getLogger("torch_ntk.monitor")

_PROBED = (
    "{} estimates the kernel of {:,} outputs per sample from eight random directions of them, the "
    "same at every step. output='mean' takes all outputs."
)
_NO_STEP = (
    "{} measures the kernel of the optimizer, which begins with its first step: Θ_0 is that of the "
    "first measurement after it."
)
_LATE = "{} starts at step {}: drift and gap are measured from the parameters of that step."
_NO_VALIDATION = (
    "No validation batch came before the first measurement: there is no validation probe. Pass "
    "validation_probe=(x, y), or let the Trainer begin with a sanity check."
)
_STEPS = 8.0
"""Training steps that a measurement takes where nobody has said how many samples it takes."""
_ALONE = (
    "{} takes whole kernels in the first process from now on, for others did not take their "
    "shares: {}."
)
_KINDS = (ArgumentTypeError, ArgumentValueError, TypeError, ValueError)
_OF_ONE = ("seconds", "overhead", "batches", "verdict", "anchor_step")


class Session:
    """Probes, a schedule and a record of what was measured, and what becomes of errors.

    The core of `Monitor` and of the Lightning callbacks, which bring the network to it. A
    measurement is

        with session.attempt(step, network):
            if session.record.reference is None:
                session.begin(network, batch, step, training)
            observation = session.measure(network, step, training, batches=batches)

    Args:
        probe: In one of the forms that `torch_ntk.callbacks.NTKMonitor` takes.
        owner: Of whom warnings speak.
        own: Begins the names that several monitors with one prefix would share: seconds, verdict.
        **options: Arguments of `NTKMonitor`.

    Attributes:
        settings: The arguments, checked.
        record: What was measured on the probe.
        validation: What was measured on the validation probe, if there is one.
        pictures: What was measured on the probe besides numbers, as far as a page shows it.
        say: Is told what a user may want to know once, and need not act on.
        last_step: The step of the last attempt, successful or not.
        diverged_at: The step at which the parameters were found NaN or infinite.
        shared_kernel: The work that the processes of a data-parallel training share; None if this
            one measures alone.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    def __init__(
        self,
        probe: ProbeLike | None,
        *,
        owner: str,
        own: str = "",
        **options: Unpack[SessionOptions],
    ) -> None:
        samples = options.pop("validation_probe", None)  # which settings need not keep alive
        self.settings = settings = Settings(**options)  # type: ignore[misc]
        evaluation = settings.evaluation()
        self.record = Record(settings.metrics, evaluation, loss=settings.loss)
        if evaluation.moved_by == "optimizer" and not self.record.takes_kernel:
            raise value_error(
                "kernel",
                "'gradient' where no metric takes the kernel",
                f"'optimizer' with {', '.join(self.record.metrics)}",
                "'stability' knows the optimizer in any case; the linearization gap does not "
                "depend on it.",
            )
        probe = DEFAULT_PROBE if probe is None else probe
        self._probe = self._given("probe", probe)
        self.validation: Record | None = None
        self._validation: int | Probe | Unread | None = None
        if samples is not None:
            self._validation = self._given("validation_probe", samples)
            possible = [name for name, metric in REGISTRY.items() if metric.on_validation]
            metrics = [name for name in self.record.metrics if name in possible]
            if not metrics:
                expected = f"given with one of the metrics {', '.join(possible)}"
                came = f"the metrics {', '.join(self.record.metrics)}"
                raise value_error("validation_probe", expected, came)
            self.validation = Record(metrics, evaluation, names=VALIDATION)
        self._owner, self._own = owner, own
        self.say: Callable[[str], None] = _logger.info
        self.reset()

    def _given(self, name: str, probe: ProbeLike) -> int | Probe | Unread:
        """The samples of an argument, or their number."""
        is_number = isinstance(probe, int) and not isinstance(probe, bool)
        if not self.settings.coupled or isinstance(probe, _DefaultCount):
            return read_probe(name, probe)
        if is_number and name == "probe":
            raise value_error(
                name,
                "None or a batch with coupled=True",
                describe(probe),
                "The rows of the outputs are the samples; to take fewer, return fewer: "
                "forward_fn=lambda net, batch: net(batch)[:64].",
            )
        return read_probe(name, probe) if is_number else coupled_probe(name, probe)

    def reset(self) -> None:
        """Forget everything: the next measurement is the first one."""
        self.schedule = self.settings.new_schedule()
        self.record.reset()
        self.pictures = Pictures()
        if self.validation is not None:
            self.validation.reset()
        self._validation_probe = self._validation  # a number of samples, until a batch came
        self.last_step: int | None = None
        self.diverged_at: int | None = None
        self.shared_kernel: SharedKernel | None = None
        self._network: nn.Module | None = None
        self._remedy: str | None = None
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to one process: launchers send monitors to others."""
        return {**vars(self), "_network": None, "shared_kernel": None}

    # ------------------------------------------------------------------ names
    @property
    def curves(self) -> tuple[Curve, ...]:
        """The curves of what is measured."""
        metrics = [REGISTRY[name] for name in self.record.metrics]
        found = [curve for metric in metrics for curve in metric.curves]
        if self.validation is not None:
            found += [curve for metric in metrics for curve in metric.validation_curves]
        return (*found, OVERHEAD)

    def tag(self, name: str) -> str:
        """The name under which a number is logged."""
        return f"{self.settings.prefix}/{self._own if name in _OF_ONE else ''}{name}"

    # ------------------------------------------------------------------ measuring
    @property
    def needs_batch(self) -> bool:
        """Whether the probe is to be taken from the first batch."""
        return isinstance(self._probe, int)

    @property
    def needs_validation_batch(self) -> bool:
        """Whether the validation probe is to be taken from the first validation batch."""
        return isinstance(self._validation_probe, int)

    def is_due(self, step: int) -> bool:
        """Whether to measure at `step`, at which nothing has been tried yet."""
        if step == self.last_step:  # the same parameters: an accumulating batch, or a restart
            return False
        if self.record.reference is None and step < (self.settings.anchor_at or 0):
            return False
        # Also where the first measurement failed: a network that cannot be measured is not
        # tried again at every step.
        due = self.last_step is None or self.schedule.due(step, self.last_step)
        shared = self.shared_kernel
        return due if shared is None else shared.is_due(step, due, self.last_step, self.schedule)

    def look_for_others(self) -> None:
        """Find out whether other processes train the same network; to be called in all of them."""
        self.shared_kernel = SharedKernel.of_this_process(self.record, self.settings)

    def assist(self, find: Callable[[], nn.Module], step: int, batch: Any) -> None:
        """Compute a share of the kernel for the first process, if it has asked for one.

        `find` returns the module, and samples are put in the form of the next batch of this
        process.
        """
        if self.shared_kernel is None:
            return

        @contextlib.contextmanager
        def ready(reference: Reference) -> Iterator[tuple[nn.Module, Reference]]:
            network = find()
            reference = reference.to(next(network.parameters()).device)
            reference = self._in_form(reference, network, self._probe, batch)
            module = self._adapted(network)
            with self._statistics(module, reference.probe):
                yield module, reference

        self.shared_kernel.assist(step, ready)

    @contextlib.contextmanager
    def attempt(self, step: int, module: nn.Module) -> Iterator[None]:
        """Within it, what goes wrong ends the run only if that is what a user expects.

        SIGTERM ends what is done within, and not the run, which finds its own note of it. The time
        spent within it counts as overhead.
        """
        started = time.perf_counter()
        self.last_step = step
        self._started, self._drawing = started, 0.0
        try:
            with ended_by_sigterm():
                yield
            self.diverged_at = None
        except Stopped:
            self.warn_once("stopped", f"The measurement at step {step} was ended by SIGTERM.")
        except Exception as error:  # anything that a network's forward may raise
            network = module if self._network is None else self._network
            if has_diverged(network):
                self.diverged_at = step if self.diverged_at is None else self.diverged_at
                self.warn_once(
                    "diverged",
                    f"The network has NaN or infinite parameters at step {step}: the kernel is "
                    "not measured. Lower the learning rate.",
                )
            else:
                told = in_own_names(str(error), network)
                if self.settings.on_error == "warn":
                    self.warn_once(told, f"No measurement at step {step}: {told}")
                elif told == str(error) or not isinstance(error, (TypeError, ValueError)):
                    raise
                else:
                    raise _kind_of(error)(told) from error
        finally:
            seconds = time.perf_counter() - started - self._drawing
            self.schedule.spend(seconds, self._drawing)

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it, and within `attempt`, time counts as that of figures."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._drawing = time.perf_counter() - started

    def draws(self, every: int | None = None) -> bool:
        """Whether the last measurement has figures, which take longer than a small kernel.

        The first one at or after each multiple of `every` steps has. Without it the 1st, 2nd, 4th,
        8th, … have, if there is time.
        """
        rows = self.record.history
        count = len(rows)
        if every is not None and count > 1:
            return rows[-1]["step"] // every > rows[-2]["step"] // every
        return count & (count - 1) == 0 and (every is not None or self.schedule.due_figures())

    @contextlib.contextmanager
    def forgiving(
        self, kinds: type[Exception] | tuple[type[Exception], ...], text: str, key: str = ""
    ) -> Iterator[None]:
        """Within it, errors of these kinds are warnings, unless `on_error` is `"raise"`.

        The text has `{}` in the place of the error. A key stands for one warning, "" for each
        error.
        """
        try:
            yield
        except kinds as error:
            if self.settings.on_error == "raise":
                raise
            self.warn_once(key or str(error), text.format(error))

    def begin(
        self, network: nn.Module, batch: Any, step: int, training: Training | None = None
    ) -> None:
        """Take the reference on both probes; a number of samples is taken from the batch."""
        module = self._adapted(network)
        probe = self._read(network, self._probe, batch)
        if self.settings.recalibrate and statistics_of(module):
            # In words of its own: the pass that takes the statistics would raise anything.
            self._remedied(network, probe, lambda: self.record.examine(module, probe))
        with self._statistics(module, probe):
            # First: it is taken again with the other one if that fails, which ends the attempts.
            if self.validation is not None:
                if self._validation_probe is None or isinstance(self._validation_probe, int):
                    self.warn_once("validation", _NO_VALIDATION)
                else:
                    samples = self._read(network, self._validation_probe)
                    self.validation.begin(module, samples, step, training)
            within = self._within(probe)
            begin = lambda: self.record.begin(module, probe, step, training, within)  # noqa: E731
            self._remedied(network, probe, begin)
        evaluation = self.record.evaluation
        if self.record.too_long:
            self.say(self._in_time())
        elif self.settings.output is None and evaluation.is_probed:
            self.say(_PROBED.format(self._owner, evaluation.size))
        if self.record.awaits_step:
            self.say(_NO_STEP.format(self._owner))
        if step > 0 and self.settings.anchor_at is None:
            self.warn_once("late", _LATE.format(self._owner, step))

    def _within(self, probe: Probe) -> float | None:
        """How long a measurement may take, in training steps on the probe; None is no limit.

        If the length of the run is known, the first and the last measurement together should fit in
        the budget.
        """
        if probe.coupled or not isinstance(self._probe, _DefaultCount):
            return None
        steps, settings = _STEPS, self.settings
        length = self.schedule.length
        if length is not None and self.schedule.has_budget:
            steps = min(steps, settings.max_overhead * length / 2)
        return steps * probe.batch_size / len(probe)

    def _in_time(self) -> str:
        """What is measured where all would take too long, or what to pass."""
        reference, evaluation = self.record.reference, self.record.evaluation
        assert reference is not None
        kinds, few = f"{len(reference.probe)} samples", "probe=(a number of samples)"
        if reference.probe.coupled:
            few = "forward_fn=lambda net, batch: net(batch)[:64]"
        if evaluation.is_probed:
            kinds += f" and {DIRECTIONS} random directions of the outputs"
        return (
            f"{self._owner}: a kernel {self.record.too_long}, which is long beside a training step "
            f"or the run; it takes {kinds}. Choose with {few} and output=."
        )

    def _remedied(self, network: nn.Module, probe: Probe, do: Callable[[], None]) -> None:
        """Do it; of a network that cannot be measured, the error says which part of it can."""
        try:
            do()
        except OptimizerError:
            raise  # of which no part of the network is the remedy
        except (TypeError, ValueError) as error:
            if self._remedy is None:  # sought once, however often the measurement is tried
                self._remedy = self._part(network, probe)
            if not self._remedy:
                raise
            raise _kind_of(error)(f"{error} {self._remedy}") from error

    @contextlib.contextmanager
    def _statistics(self, module: nn.Module, probe: Probe) -> Iterator[None]:
        """Within it, running statistics of normalization are those of the probe."""
        if not self.settings.recalibrate:
            yield
            return
        with recalibrated(module, probe) as names:
            for record in filter(None, (self.record, self.validation)):
                record.statistics = names
            yield

    def offer_validation(self, find: Callable[[], nn.Module], batch: Any) -> None:
        """Take the validation probe from a batch, if it was given as a number of samples."""
        count = self._validation_probe
        if not isinstance(count, int):
            return
        with (
            self.forgiving((TypeError, ValueError), "No validation probe: {}", "validation"),
            torch.inference_mode(False),  # a tensor of that mode could not be differentiated
        ):
            self._validation_probe = self._read(find(), count, batch)

    def measure(
        self,
        network: nn.Module,
        step: int,
        training: Training,
        *,
        batches: int,
        batch: Any = None,
    ) -> Observation:
        """Measure within `attempt`, after `begin`.

        So many training batches have been seen. A probe from a saved state is put in the form of
        the next batch, if there is one.
        """
        module = self._adapted(network)
        self._in_its_form(self.record, network, self._probe, batch)
        if self.validation is not None:
            self._in_its_form(self.validation, network, self._validation, batch)
        reference = self.record.reference
        assert reference is not None  # which `begin` has taken
        started = time.perf_counter()
        with self._statistics(module, reference.probe):
            others = self._others(module, reference, step, training)
            before = time.perf_counter() - started  # that, and the statistics of the probe
            shared = self.shared_kernel
            total = None if shared is None else shared.total(module, reference.probe, step)
            seen = self.record.measure(module, step, training, total)
            if shared is not None and shared.sharing.has_given_up and "alone" not in self._warned:
                self._warned.add("alone")
                self.say(_ALONE.format(self._owner, shared.sharing.why_alone))
            self.record.add(seen, **others, seconds=seen.scalars["seconds"] + before)
            self.pictures.add(self.record, seen)
            beside: dict[str, float] = {}
            if self.validation is not None and self.validation.reference is not None:
                beside = self.validation.measure(module, step, training).scalars
        if self.validation is not None and beside:
            seconds = seen.scalars["seconds"] + beside["seconds"]
            named = {VALIDATION + n: beside[n] for n in self.validation.metrics if n in beside}
            self.record.add(seen, **named, seconds=seconds)
        if passes_the_edge(self.record.history, training.optimizers):
            self.warn_once("edge", f"{self._owner}: {edge_in_words(seen.scalars, step)}")
        spent = time.perf_counter() - self._started
        self.record.add(seen, batches=float(batches), overhead=self.schedule.share(spent))
        return seen

    def _others(
        self, module: nn.Module, reference: Reference, step: int, training: Training
    ) -> dict[str, float]:
        """Numbers that a subclass adds to a measurement."""
        return {}

    @property
    def needs_every_step(self) -> bool:
        """Whether `remember` has to be called at every step."""
        return "last_step" in self.record.needs

    def remember(self, network: nn.Module, step: int, optimizers: Sequence[Optimizer]) -> None:
        """Keep what a metric needs to know of the step that comes next; after measuring."""
        if self.needs_every_step:
            self.record.remember(self._adapted(network), step, optimizers)

    def _part(self, network: nn.Module, probe: Probe) -> str:
        """What to pass to measure a part of a network that cannot be measured; "" for nothing."""
        if self.settings.forward_fn is not None or self.settings.coupled or has_diverged(network):
            return ""
        part = part_that_works(network, probe, self.settings.dtype)
        return "" if part is None else f"Pass {part}, which measures that part."

    def _read(self, network: nn.Module, samples: int | Probe | Unread, batch: Any = None) -> Probe:
        """A probe in the form in which the network takes it; a number is taken from the batch."""
        settings = self.settings
        reader = Reader(network, settings.forward_fn, settings.input_fn, settings.coupled)
        if isinstance(samples, Probe):
            return reader.fit(samples)
        if isinstance(samples, Unread):
            return samples.read(reader.read)
        return reader.first_of(batch, samples)

    def _in_its_form(self, record: Record, network: nn.Module, samples: Any, batch: Any) -> None:
        """Put the samples of a saved state, which has plain containers, in those of this run."""
        if record.reference is not None:
            record.reference = self._in_form(record.reference, network, samples, batch)

    def _in_form(
        self, reference: Reference, network: nn.Module, samples: Any, batch: Any
    ) -> Reference:
        if reference.probe.is_whole or (isinstance(samples, int) and batch is None):
            return reference  # or the run has had no batch since
        few = _DefaultCount(1) if isinstance(samples, int) else samples
        found = self._read(network, few, batch)
        return replace(reference, probe=reference.probe.in_form_of(found))

    def release(self) -> None:
        """Keep no network alive, nor a copy of its parameters that only the next step needs."""
        self._network = None
        if self.shared_kernel is not None:
            self.shared_kernel.release()
        self.record.forget_step()

    def warn_once(self, key: str, text: str) -> None:
        """Warn unless that has been done under this key."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=3)

    def _adapted(self, network: nn.Module) -> nn.Module:
        self._network = adapted(network, self.settings.forward_fn, self._network)
        return self._network

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Reference (θ_0, probe, Θ_0, f_0) and history: tensors and plain values only.

        θ_0 and the buffers are the same on both probes and stand in the first one's state only.
        """
        validation = None
        if self.validation is not None and self.validation.reference is not None:
            validation = {**self.validation.reference.state_dict(), "params": {}, "buffers": {}}
        return {
            "observer": self.record.state_dict(),
            "last_step": self.last_step,
            "diverged_at": self.diverged_at,
            "validation": validation,
            "pictures": self.pictures.state_dict(),
            "time": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with the reference of the first run.

        Raises:
            ValueError: It cannot be used; nothing changes then.
        """
        self.record.load_state_dict(state["observer"])
        self.pictures.load_state_dict(state.get("pictures", {}))
        if self.validation is not None:
            self.validation.reset()
            self._validation_probe = self._validation
            reference, kept = self.record.reference, state.get("validation")
            if kept is not None and reference is not None:
                own = Reference.from_state_dict(kept)
                self._validation_probe = own.probe
                self.validation.reference = replace(
                    own, params=reference.params, buffers=reference.buffers
                )
        if "time" in state:
            self.schedule.load_state_dict(state["time"])
        last = state["last_step"]
        self.last_step = None if last is None else int(last)
        self.diverged_at = state.get("diverged_at")


def _kind_of(error: TypeError | ValueError) -> type[TypeError | ValueError]:
    """The kind of an error that is raised again with other words."""
    return next(kind for kind in _KINDS if isinstance(error, kind))
