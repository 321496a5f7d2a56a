"""`Record`: the reference on one probe, and the history of what was measured there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import ArgumentError, describe, value_error
from ..._functional import plain_name, refuse_unsupported, unwrap
from ..._optimizers import NoScalesError, NoStepError
from ..probe._probe import Probe
from ..reference._reference import Reference, snapshot
from ..stability._stability import Training
from ..stability._training_loss import LossLike, check_loss
from ._adapted_network import in_own_names
from ._evaluation import DIRECTIONS, LARGE, Evaluation, KernelOutput
from ._infinite_kernel import infinite_kernel
from ._last_step import LastStep
from ._linearization import Linearization
from ._metrics import METRICS, REGISTRY, read_metrics
from ._moment import Moment, Total, sum_of
from ._observation import Observation

_KERNELS = frozenset({"kernel", "parts", "spectrum"})
"""Those of the quantities that metrics may need for which the kernel is computed."""

LONGEST = 30.0
"""A kernel that takes more than this number of seconds is too slow to be measured repeatedly."""

MOMENTARY = 0.5
"""Measurements of up to this number of seconds are not shortened. Any run may have ten of them."""

_FEWEST = 8  # the least number of samples to which a probe is shortened
# The time of a kernel is estimated by a trial if the activations, for all outputs and samples, take
# more than this number of bytes, or if the network has many parameters.
_TRIED = 2**24
_SLOPES = 1.5  # about the time of a linearization, in training steps on the same samples


class Record:
    """The reference on a probe, and everything that was measured and compared with it.

    Θ_0, f_0 and the linearization are computed with the parameters *and buffers* of the reference,
    Θ_t and f_t with the current ones. With batch normalization f_t therefore also changes through
    the running statistics, which the linearization in θ does not describe. Their change is measured
    as `buffer_drift`. The parameters by which the kernel is computed are determined at the
    reference, so that Θ_t and Θ_0 are comparable even if layers are frozen or unfrozen later.

    Args:
        metrics: The names of the metrics to measure.
        evaluation: The settings by which kernels and outputs are computed; None is the default.
        loss: The loss of the training, as `stability.find_loss` accepts it.
        names: What is put before the names of metrics in warnings.

    Attributes:
        reference: The reference with which the network is compared, or None before `begin`.
        history: One dictionary for each measurement, with `"step"` and the values by name.
        spectra: The step and the eigenvalues of each measurement that computed them.
        too_long: A text that says how long the requested kernel would take, if it is too slow.
        statistics: The names of the buffers that contain running statistics of the probe (see
            `recalibrated`), or none if those of the training are used.
        awaits_step: Whether the last measurement had no kernel because the optimizer had not taken
            a step yet, without which its kernel is not defined.

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
        """Raise an error if `begin` would, since network or probe are not suitable for a kernel."""
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
        """Store the reference: the present parameters and buffers, and the quantities needed.

        Args:
            network: The module to measure.
            probe: The samples.
            step: The number of optimizer steps so far.
            training: The module in training and its optimizers, for the kernel of an optimizer.
            within: If a measurement would take more than this number of training steps on the whole
                probe, fewer samples are used. None uses all.

        Raises:
            TypeError, ValueError: The network or the probe is not suitable for a kernel, as in
                `torch_ntk.empirical_ntk`. Nothing changes then.
        """
        started = time.perf_counter()
        network = unwrap(network)
        first = next(network.parameters(), None)
        probe = probe if first is None else probe.to(first.device)
        trained, size, held, probe = self._asked.examined(network, probe)
        evaluation = self._asked.for_outputs(size, held)
        count = sum(p.numel() for p in network.parameters())
        is_long = held * size * len(probe) > _TRIED or count > LARGE
        if self.takes_kernel and is_long:
            evaluation, probe = self._in_time(network, trained, evaluation, probe, within)
        kernel = parts = None
        # If there is no kernel yet, Θ_0 is the kernel of the first measurement that has one.
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
        """The settings and the samples with which a kernel that would take too long is measured.

        The kernel is estimated from directions of the outputs if the user has not chosen the output
        reduction. If that is not sufficient, fewer samples are used, as `within` of `begin` says.
        """
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
                # A power of two, so that two runs of one network mostly use the same samples.
                most = max(_FEWEST, int(n * longest / seconds))
                probe = probe.first(1 << most.bit_length() - 1)
                self.too_long = told
        elif seconds > LONGEST:
            self.too_long = told
        return evaluation, probe

    @property
    def is_shareable(self) -> bool:
        """Whether the kernel is a sum over outputs, so that several processes can share it."""
        is_sum = self.takes_kernel and "parts" not in self.needs and self.evaluation.shares > 1
        return is_sum and self.evaluation.moved_by == "gradient"

    def evaluation_of(self, reference: Reference, output: KernelOutput) -> Evaluation:
        """The settings by which another process computes the kernel that the first one asks for."""
        return replace(self._asked, output=output).for_outputs(reference.size, reference.held)

    def measure(
        self,
        network: nn.Module,
        step: int,
        training: Training | None = None,
        total: Total | None = None,
    ) -> Observation:
        """Compare `network` with the reference, and add the result to the history.

        Args:
            network: The module to measure, which must be that of the reference.
            step: The number of optimizer steps so far.
            training: For `stability` and the kernel of an optimizer.
            total: A function that adds up the parts of the kernel, as in `Moment`.

        Raises:
            ValueError: There is no reference, or the network is not that of the reference, or it
                has parameters that are NaN or infinite.
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
        self._warn_of_unfrozen(network, reference)
        return seen

    def remember(self, network: nn.Module, step: int, optimizers: Sequence[Optimizer]) -> None:
        """Store the parameters before the next step, once for each step, if a metric needs them."""
        if "last_step" in self.needs and (self._before is None or self._before.step != step):
            self._before = LastStep.before(unwrap(network), step, optimizers)

    def forget_step(self) -> None:
        """Free the memory of what `remember` has stored."""
        self._before = None

    def _last_step(self, step: int) -> LastStep | None:
        """The state that `remember` stored before the optimizer step to `step`, or None."""
        before = self._before
        return before if before is not None and before.step == step - 1 else None

    def add(self, seen: Observation, **values: float) -> None:
        """Add values to the last measurement `seen` and to its row of the history."""
        seen.scalars.update(values)
        self.history[-1].update(values)

    def _optimizer(
        self,
        network: nn.Module,
        names: Sequence[str],
        training: Training | None,
        undefined: dict[str, str],
    ) -> tuple[bool, Optimizer | None]:
        """Whether the kernel can be computed at this step, and the optimizer whose P is in it.

        The optimizer is None for the kernel of gradient descent. The kernel of an optimizer is not
        defined before its first step. If it is not defined for another reason, that reason is put
        into `undefined`.
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
        """The kernel `[N, N]` of the infinitely wide network; None, with a warning, without one."""
        try:
            return infinite_kernel(network, trained, probe)
        except ArgumentError as error:  # most networks have no such limit
            self._warn({"infinite_gap": str(error)}, network)
            return None

    def _reference_for(self, network: nn.Module) -> Reference:
        """The reference on the network's device; `ValueError` if it is of another network."""
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
        """Warn once for each metric that is not defined, with the reason."""
        for name, reason in undefined.items():
            if name not in self._warned:
                self._warned.add(name)
                told = in_own_names(reason, network)
                text = f"{self._names + name!r} is not measured: {told}"
                warnings.warn(text, UserWarning, stacklevel=3)

    def _warn_of_unfrozen(self, network: nn.Module, reference: Reference) -> None:
        """Warn once if parameters are trained that the kernel does not contain."""
        if not self.takes_kernel or self._asked.params is not None or "unfrozen" in self._warned:
            return
        trained = {n for n, p in network.named_parameters() if p.requires_grad}
        others = sorted(trained - set(reference.trained))
        if others:
            self._warned.add("unfrozen")
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            text = (
                f"Parameters that were frozen at step {reference.step}, with which the kernel is "
                f"compared, are trained now: {plain_name(others[0])!r}{more}. The kernel does not "
                "contain them, so that it may move less than that of all parameters. Pass "
                "anchor_at=N, a step at which they are trained, to compare with the network there."
            )
            warnings.warn(in_own_names(text, network), UserWarning, stacklevel=3)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain Python values, with about the size of the model (θ_0)."""
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
        """Continue from a state. If it cannot be used, nothing changes.

        Raises:
            ValueError: The state has another version or is incomplete, or was saved with another
                `output` or `kernel`.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1:
            raise value_error(
                "state", "a state of version 1", describe(state), "Start a new monitor."
            )
        try:
            # If the user has not chosen it, the reduction follows from O, as in the saved run.
            asked = self._asked.output or state["output"]
            kind = state.get("kernel", "gradient")
            for name, saved, own in (
                ("output", state["output"], asked),
                ("kernel", kind, self._asked.moved_by),
            ):
                if saved != own:  # two kinds of kernels cannot be compared
                    raise value_error(
                        name,
                        f"{saved!r}, as in the run that is resumed",
                        repr(own),
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
    """The measurement with its values, and with those quantities that were computed for metrics."""
    computed: dict[str, Any] = vars(moment)  # `cached_property` stores computed values there
    spectrum, movement = computed.get("spectrum"), computed.get("movement")
    return Observation(
        moment.step,
        values,
        computed.get("kernel"),
        None if spectrum is None else spectrum.eigenvalues,
        computed.get("outputs") if movement is None else movement.outputs,
        None if movement is None else movement.linearized,
    )
