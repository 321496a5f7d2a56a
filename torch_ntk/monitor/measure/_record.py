"""What is measured on one probe of one training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import ArgumentError, describe, value_error
from ..._functional import refuse_unsupported, unwrap
from ..._optimizers import NoScalesError, NoStepError
from ..probe._probe import Probe
from ..reference._reference import Reference, snapshot
from ..stability._stability import Training
from ..stability._training_loss import LossLike, check_loss
from ._adapted_network import in_own_names
from ._evaluation import DIRECTIONS, Evaluation, KernelOutput, infinite_kernel
from ._last_step import LastStep
from ._linearization import Linearization
from ._metrics import METRICS, REGISTRY, read_metrics
from ._moment import Moment, Total, sum_of
from ._observation import Observation

_KERNELS = frozenset({"kernel", "parts", "spectrum"})
"""What is taken of the kernel, of the things that metrics need."""

LONGEST = 30.0
"""Seconds from which on a kernel is too long to be measured again and again."""

MOMENTARY = 0.5
"""Seconds up to which a measurement is not made shorter: ten of them are what any run may have."""

_FEWEST = 8  # samples
_TRIED = 2**27  # bytes of activations of all outputs and samples, from which on a kernel is tried
_SLOPES = 1.5  # training steps that the linearization of the same samples takes, about


class Record:
    """The reference on a probe, and everything that was measured against it.

    Θ_0, f_0 and the linearization belong to the parameters *and buffers* of the reference, Θ_t and
    f_t to the current ones. With batch normalization f_t therefore also moves through the running
    statistics, which a linearization in θ does not know; their own movement is measured as
    `buffer_drift`. The parameters by which the kernel is taken are determined at the reference, so
    that Θ_t and Θ_0 stay comparable when layers are frozen or unfrozen later.

    Args:
        metrics: Names of metrics.
        evaluation: How kernels and outputs are taken.
        loss: The loss in training, for `stability`; see `stability.find_loss`.
        names: Begins the names of metrics in warnings.

    Attributes:
        reference: What the network is compared with; None before `begin`.
        history: `"step"` and the values by name, one dictionary for each measurement.
        spectra: Step and eigenvalues of each measurement that needed them.
        too_long: How long a kernel of what was asked for would take, if that is too long.
        statistics: Names of the buffers that hold running statistics of the probe, see
            `recalibrated`; none if they are those of the training.
        awaits_step: Whether the last measurement had no kernel because the optimizer, whose kernel
            is measured, had not taken a step.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    def __init__(
        self,
        metrics: Sequence[str] = METRICS,
        evaluation: Evaluation | None = None,
        *,
        loss: LossLike = "auto",
        names: str = "",
    ) -> None:
        self.metrics = tuple(metric.name for metric in read_metrics(metrics))
        self.needs = frozenset(need for name in self.metrics for need in REGISTRY[name].needs)
        asked = Evaluation() if evaluation is None else evaluation
        self.evaluation = self._asked = replace(asked, has_spectrum="spectrum" in self.needs)
        self.loss = check_loss(loss)
        self._names = names
        self.reset()

    def reset(self) -> None:
        """Forget the reference and everything measured."""
        self.evaluation = self._asked
        self.reference: Reference | None = None
        self.history: list[dict[str, float]] = []
        self.spectra: list[tuple[int, Tensor]] = []
        self._previous: tuple[int, Tensor] | None = None
        self._before: LastStep | None = None
        self.awaits_step = False
        self.too_long = ""
        self.statistics: frozenset[str] = frozenset()
        self._warned: set[str] = set()
        self._seconds_of_reference = 0.0

    @property
    def takes_kernel(self) -> bool:
        """Whether a metric needs the kernel."""
        return bool(self.needs & _KERNELS)

    # ------------------------------------------------------------------ measuring
    def examine(self, network: nn.Module, probe: Probe) -> None:
        """Raise what `begin` would raise of a network or a probe that is not fit for a kernel."""
        network = unwrap(network)
        self._asked.examined(network, probe.to(next(network.parameters()).device))

    def begin(
        self,
        network: nn.Module,
        probe: Probe,
        step: int,
        training: Training | None = None,
        within: float | None = None,
    ) -> None:
        """Take the reference: the network as it is now, and what is needed of it.

        Args:
            network: The module.
            probe: The samples.
            step: Optimizer steps taken.
            training: What moves it, for the kernel of its optimizer.
            within: Fewer samples are taken where a measurement would take more than so many times
                as long as a training step on all of them; None takes all.

        Raises:
            TypeError, ValueError: The network or the probe is not fit for a kernel; see
                `torch_ntk.empirical_ntk`. Nothing changes then.
        """
        started = time.perf_counter()
        network = unwrap(network)
        first = next(network.parameters(), None)
        probe = probe if first is None else probe.to(first.device)
        trained, size, held, probe = self._asked.examined(network, probe)
        evaluation = self._asked.for_outputs(size, held)
        if self.takes_kernel and held * size * len(probe) > _TRIED:
            evaluation, probe = self._in_time(network, trained, evaluation, probe, within)
        kernel = parts = None
        # Without a kernel now, Θ_0 is that of the first measurement that has one.
        has_kernel, optimizer = self._optimizer(network, trained, training, {})
        if has_kernel and "parts" in self.needs:
            parts = evaluation.kernel_by_module(network, trained, probe, optimizer)
            kernel = sum_of(parts)
        elif has_kernel:
            kernel = evaluation.kernel(network, trained, probe, optimizer=optimizer)
        reference = Reference(
            step=step,
            trained=trained,
            params=snapshot(dict(network.named_parameters())),
            buffers=snapshot(dict(network.named_buffers())),
            probe=probe,
            size=size,
            held=held,
            outputs=None if evaluation.is_probed else evaluation.outputs(network, trained, probe),
            kernel=kernel,
            parts=parts,
            infinite=self._infinite(network, trained, probe) if "infinite" in self.needs else None,
        )
        if "movement" in self.needs:
            Linearization(network, reference, evaluation).check()
        self.evaluation, self.reference = evaluation, reference
        self._seconds_of_reference = time.perf_counter() - started

    def _in_time(
        self,
        network: nn.Module,
        trained: Sequence[str],
        evaluation: Evaluation,
        probe: Probe,
        within: float | None,
    ) -> tuple[Evaluation, Probe]:
        """Directions in place of outputs, and fewer samples, where a kernel would take too long."""
        n, outputs = len(probe), evaluation.size or 1
        seconds, longest = evaluation.seconds(network, trained, probe), LONGEST
        digits = 0 if seconds >= 10.0 else 1
        told = f"would take about {seconds:.{digits}f} s for {n} samples of {outputs} outputs"
        is_free = self._asked.output is None and not evaluation.is_probed
        if seconds > LONGEST and is_free and outputs > DIRECTIONS:
            evaluation, self.too_long = replace(evaluation, output="probed"), told
            seconds *= DIRECTIONS / outputs
        if within is not None and not probe.coupled and seconds > MOMENTARY:
            a_step = evaluation.seconds_of_step(network, trained, probe)
            longest = min(LONGEST, max(MOMENTARY, within * a_step))
            seconds += _SLOPES * a_step if "movement" in self.needs else 0.0
            if seconds > longest and n > _FEWEST:
                # A power of two, so that two runs of one network mostly take the same samples.
                most = max(_FEWEST, int(n * longest / seconds))
                probe = probe.first(1 << most.bit_length() - 1)
                self.too_long = told
        elif seconds > LONGEST:
            self.too_long = told
        return evaluation, probe

    @property
    def is_shareable(self) -> bool:
        """Whether the kernel is a sum over outputs which several processes can share."""
        is_sum = self.takes_kernel and "parts" not in self.needs and self.evaluation.shares > 1
        return is_sum and self.evaluation.moved_by == "gradient"

    def evaluation_of(self, reference: Reference, output: KernelOutput) -> Evaluation:
        """How another process takes its kernel: with this output, on its reference."""
        return replace(self._asked, output=output).for_outputs(reference.size, reference.held)

    def measure(
        self,
        network: nn.Module,
        step: int,
        training: Training | None = None,
        total: Total | None = None,
    ) -> Observation:
        """Compare `network` with the reference and add the result to the history.

        Args:
            network: The module of which the reference was taken.
            step: Optimizer steps taken.
            training: What moves it, for `stability` and the kernel of its optimizer.
            total: See `Moment`.

        Raises:
            ValueError: There is no reference, the network is another one, or it has NaN or
                infinite parameters.
        """
        started = time.perf_counter()
        network = unwrap(network)
        reference = self._reference_for(network)
        refuse_unsupported(network)
        is_reference = step == reference.step and not self.history
        training, undefined = training or Training(), dict[str, str]()
        has_kernel, optimizer = self._optimizer(network, reference.trained, training, undefined)
        moment = Moment(
            network,
            reference,
            step,
            self.evaluation,
            by_module="parts" in self.needs,
            is_reference=is_reference,
            training=training,
            optimizer=optimizer,
            loss=self.loss,
            previous=self._previous,
            undefined=undefined,
            statistics=self.statistics,
            last_step=self._last_step(step),
            total=total,
        )
        if optimizer is not None and reference.kernel is None:
            parts = moment.parts if moment.by_module else None
            reference = replace(reference, kernel=moment.kernel, parts=parts)
            moment.reference = self.reference = reference
        values: dict[str, float] = {}
        for metric in (REGISTRY[name] for name in self.metrics):
            if has_kernel or not _KERNELS.intersection(metric.needs):
                values.update(metric.measure(moment))
        if is_reference and step > 0:
            values["anchor_step"] = float(step)
        values["seconds"] = time.perf_counter() - started
        if is_reference:
            values["seconds"] += self._seconds_of_reference
        self.history.append({"step": float(step), **values})
        seen = _observation(moment, values)
        if "velocity" in self.metrics and seen.kernel is not None:
            self._previous = (step, seen.kernel)
        if seen.eigenvalues is not None:
            self.spectra.append((step, seen.eigenvalues.cpu()))
        self._warn(undefined, network)
        return seen

    def remember(self, network: nn.Module, step: int, optimizers: Sequence[Optimizer]) -> None:
        """Keep the parameters before the next step, if a metric needs that: once for each step.

        Args:
            network: The module.
            step: Optimizer steps taken.
            optimizers: Those of the training.
        """
        if "last_step" in self.needs and (self._before is None or self._before.step != step):
            self._before = LastStep.before(unwrap(network), step, optimizers)

    def forget_step(self) -> None:
        """Give back what `remember` keeps."""
        self._before = None

    def _last_step(self, step: int) -> LastStep | None:
        """The one that led to `step`, if what came before it was remembered."""
        before = self._before
        return before if before is not None and before.step == step - 1 else None

    def add(self, seen: Observation, **values: float) -> None:
        """Add what only the caller knows to the last measurement `seen`, also in the history."""
        seen.scalars.update(values)
        self.history[-1].update(values)

    def _optimizer(
        self,
        network: nn.Module,
        names: Sequence[str],
        training: Training | None,
        undefined: dict[str, str],
    ) -> tuple[bool, Optimizer | None]:
        """Whether there is a kernel to measure, and by whose P; None is gradient descent.

        That of an optimizer begins with its first step. At a step where it has none for another
        reason, this goes to `undefined`.
        """
        optimizers = () if training is None else training.optimizers
        self.awaits_step = False
        if not self.takes_kernel:
            return False, None
        try:
            return True, self.evaluation.optimizer_of(network, names, optimizers)
        except NoStepError:
            self.awaits_step = True
        except NoScalesError as error:
            undefined["kernel"] = str(error)
        return False, None

    def _infinite(self, network: nn.Module, trained: Sequence[str], probe: Probe) -> Tensor | None:
        try:
            return infinite_kernel(network, trained, probe)
        except ArgumentError as error:  # most networks have no such limit
            self._warn({"infinite_gap": str(error)}, network)
            return None

    def _reference_for(self, network: nn.Module) -> Reference:
        """The reference, on the network's device."""
        if self.reference is None:
            raise value_error(
                "network",
                "anchored before it is measured",
                "no reference yet",
                "Call begin(network, probe, step) first.",
            )
        self.reference.check_matches(network)
        device = next(network.parameters()).device
        if self.reference.probe.device != device:
            self.reference = self.reference.to(device)
        return self.reference

    def _warn(self, undefined: Mapping[str, str], network: nn.Module) -> None:
        for name, reason in undefined.items():
            if name not in self._warned:
                self._warned.add(name)
                told = in_own_names(reason, network)
                text = f"{self._names + name!r} is not measured: {told}"
                warnings.warn(text, UserWarning, stacklevel=3)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only. Its size is about that of the model (θ_0)."""
        return {
            "version": 1,
            "output": self.evaluation.output,
            "kernel": self.evaluation.moved_by,
            "anchor": None if self.reference is None else self.reference.state_dict(),
            "history": [dict(row) for row in self.history],
            "previous": None if self._previous is None else list(self._previous),
            "spectra": [[step, values] for step, values in self.spectra],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; nothing changes if it cannot be used.

        Raises:
            ValueError: It is not a state of this version, or of another `output`.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1:
            raise value_error(
                "state", "a state of version 1", describe(state), "Start a new monitor."
            )
        try:
            asked = self._asked.output or state["output"]  # what follows from O, as it did then
            if state["output"] != asked:  # two outputs cannot be compared
                raise value_error(
                    "output",
                    f"{state['output']!r}, as in the run that is resumed",
                    repr(asked),
                    "Resume with the same one, or start a new run.",
                )
            if state.get("kernel", "gradient") != self._asked.moved_by:
                raise value_error(
                    "kernel",
                    f"{state.get('kernel', 'gradient')!r}, as in the run that is resumed",
                    repr(self._asked.moved_by),
                    "Resume with the same one, or start a new run.",
                )
            kept = state["anchor"]
            reference = None if kept is None else Reference.from_state_dict(kept)
            history = [dict(row) for row in state["history"]]
            last = state.get("previous")
            previous = None if last is None else (int(last[0]), last[1])
            spectra = [(int(step), values) for step, values in state["spectra"]]
        except KeyError as error:
            raise value_error(
                "state", "complete", f"one without {error}", "Start a new monitor."
            ) from error
        self.evaluation = replace(self._asked, output=state["output"])
        if reference is not None:
            self.evaluation = self.evaluation.for_outputs(reference.size, reference.held)
        self.reference, self.history, self.spectra = reference, history, spectra
        self._previous = previous


def _observation(moment: Moment, values: dict[str, float]) -> Observation:
    """The values, and those quantities that some metric has asked for."""
    computed: dict[str, Any] = vars(moment)  # where `cached_property` keeps what it has computed
    spectrum, movement = computed.get("spectrum"), computed.get("movement")
    return Observation(
        moment.step,
        values,
        computed.get("kernel"),
        None if spectrum is None else spectrum.eigenvalues,
        computed.get("outputs") if movement is None else movement.outputs,
        None if movement is None else movement.linearized,
    )
