"""What is measured of a network during training, without any trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import metrics as m
from .._checks import describe, value_error
from .._functional import model_function, quiet, refuse_unsupported, unwrap
from .._types import Method, Output, ParameterSelection
from ..empirical._trial import try_out
from ._anchor import Anchor, snapshot
from ._observation import Observation
from ._outputs import check_linearizable, linearized_outputs
from ._probe import Probe
from ._scalars import METRICS, NEED_KERNEL, Scalars
from ._settings import check_measurement, check_metrics, check_selection
from ._stability import Stability, Training, stability
from ._step_rule import read_optimizers
from ._take import Take, infinite_kernel
from ._training_loss import LossLike, check_loss, find_loss


class Observer:
    """Takes an anchor of a network and measures how far training has moved it from there.

    Θ_0, f_0 and the linearization stand on the parameters *and buffers* at the anchor, Θ_t and f_t
    on the current ones. With batch normalization f_t therefore also moves through the running
    statistics, which a linearization in θ does not know; their own movement is measured as
    `buffer_drift`.

    Args:
        metrics: Which of `METRICS` and `OPTIONAL` to measure.
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"` or `"full"`.
        params: Which parameters the kernel is taken by; see `torch_ntk.empirical_ntk`. They are
            determined at the anchor, so that Θ_t and Θ_0 stay comparable when layers are frozen
            or unfrozen later.
        batch_size: Samples per block; None follows the free memory.
        dtype: In which the network is evaluated; None is float64, and float32 for large networks
            and on devices without float64. Products over parameters are added up in float64 in any
            case: added up in float32, the smallest eigenvalue of a kernel is mostly noise.
        method: As in `torch_ntk.empirical_ntk`.
        loss: The loss in training, for `stability`; see `find_loss`.
        names: Begins the names of metrics in warnings.
    """

    def __init__(
        self,
        metrics: Sequence[str] = METRICS,
        *,
        output: Output = "mean",
        params: ParameterSelection = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        method: str = "auto",
        loss: LossLike = "auto",
        names: str = "",
    ) -> None:
        self._names = names
        self.metrics = check_metrics(metrics)
        check_measurement(output=output, batch_size=batch_size, dtype=dtype, method=method)
        self.params = check_selection(params)
        self.take = Take(output, cast(Method, method), batch_size, dtype)
        self.loss = check_loss(loss)
        self.reset()

    def reset(self) -> None:
        """Forget the anchor and everything measured."""
        self.anchor: Anchor | None = None
        self.history: list[dict[str, float]] = []
        self.spectra: list[tuple[int, Tensor]] = []
        self._previous: tuple[int, Tensor] | None = None
        self._said: set[str] = set()
        self._anchor_seconds = 0.0

    # ------------------------------------------------------------------ measuring
    def drop_anchor(self, network: nn.Module, probe: Probe, step: int) -> None:
        """Keep the present state of `network` as the point of comparison.

        Raises:
            TypeError, ValueError: The network or the probe is not fit for a kernel; see
                `torch_ntk.empirical_ntk`.
        """
        started = time.perf_counter()
        network = unwrap(network)
        first = next(network.parameters(), None)
        device = probe.x.device if first is None else first.device
        probe = probe.to(device)
        with quiet(network, device):
            fn = model_function(network, self.params, self.take.evaluation(network))
            trained = tuple(fn.params)
            try_out(fn, "probe", fn.input("probe", probe.x))
        kernel, parts = self._kernels(network, trained, probe)
        anchor = Anchor(
            step=step,
            trained=trained,
            params=snapshot(dict(network.named_parameters())),
            buffers=snapshot(dict(network.named_buffers())),
            probe=probe,
            outputs=self.take.outputs(network, trained, probe),
            kernel=kernel,
            parts=parts,
            infinite=self._infinite(network, trained, probe),
        )
        if "linearization_gap" in self.metrics:
            forwards = check_linearizable(network, anchor, self.take.evaluation(network))
            anchor = replace(anchor, forwards=forwards)
        self.anchor = anchor
        self._anchor_seconds = time.perf_counter() - started

    def measure(
        self, network: nn.Module, step: int, training: Training | None = None
    ) -> Observation:
        """Measure `network` against the anchor and add the result to the history.

        Args:
            network: The module that the anchor was taken of.
            step: Optimizer steps taken.
            training: What moves it, for `stability`.

        Raises:
            ValueError: There is no anchor, the network is another one, or it has NaN or infinite
                parameters.
        """
        started = time.perf_counter()
        network = unwrap(network)
        anchor = self._anchor_for(network)
        refuse_unsupported(network)
        at_anchor = step == anchor.step and not self.history
        scalars = Scalars()
        kernel = parts = eigenvalues = outputs = linearized = None
        if self._needs_kernel:
            kernel, parts = anchor.kernel, anchor.parts
            if kernel is None or not at_anchor:
                kernel, parts = self._kernels(network, anchor.trained, anchor.probe)
        if kernel is not None:
            eigenvalues = scalars.put_kernel(
                kernel, anchor, self.metrics, self.take.rounding(network)
            )
            if "velocity" in self.metrics:
                scalars.put_velocity(kernel, step, self._previous)
            if "infinite_gap" in self.metrics:
                scalars.put_infinite_gap(kernel, self.take.output, anchor)
        if parts is not None:
            scalars.put_parts(parts, anchor)
        if {"linearization_gap", "stability"} & set(self.metrics):
            outputs = anchor.outputs
            if not at_anchor:
                outputs = self.take.outputs(network, anchor.trained, anchor.probe)
        if outputs is not None and "stability" in self.metrics:
            found = partial(self._stability, network, anchor, training or Training(), outputs)
            scalars.put_stability(found)
        if outputs is not None and "linearization_gap" in self.metrics:
            linearized = linearized_outputs(
                network, anchor, self.take.evaluation(network), self.take.chunk
            )
            gap = m.linearization_gap(outputs, linearized, anchor.outputs)
            scalars.values["linearization_gap"] = float(gap)
        if "param_drift" in self.metrics:
            scalars.put_movement(network, anchor)
        values = scalars.values
        if at_anchor and step > 0:
            values["anchor_step"] = float(step)
        values["seconds"] = time.perf_counter() - started
        if at_anchor:
            values["seconds"] += self._anchor_seconds
        self.history.append({"step": float(step), **values})
        if kernel is not None and "velocity" in self.metrics:
            self._previous = (step, kernel)
        if eigenvalues is not None:
            self.spectra.append((step, eigenvalues.cpu()))
        self._say_undefined(scalars.undefined)
        return Observation(step, values, kernel, eigenvalues, outputs, linearized)

    def note(self, seen: Observation, **values: float) -> None:
        """Add what only the caller knows to the last measurement `seen`, also in the history."""
        seen.scalars.update(values)
        self.history[-1].update(values)

    @property
    def _needs_kernel(self) -> bool:
        return any(name in NEED_KERNEL for name in self.metrics)

    def _kernels(
        self, network: nn.Module, trained: tuple[str, ...], probe: Probe
    ) -> tuple[Tensor | None, dict[str, Tensor] | None]:
        """Θ and its parts by module, as far as the metrics need them."""
        if "module_drift" in self.metrics:
            parts = self.take.by_module(network, trained, probe)
            return torch.stack(list(parts.values())).sum(0), parts
        whole = self.take.kernel(network, trained, probe) if self._needs_kernel else None
        return whole, None

    def _infinite(
        self, network: nn.Module, trained: tuple[str, ...], probe: Probe
    ) -> Tensor | None:
        if "infinite_gap" not in self.metrics:
            return None
        try:
            return infinite_kernel(network, trained, probe)
        except (TypeError, ValueError) as error:  # most networks have no such limit
            self._say_undefined({"infinite_gap": str(error)})
            return None

    def _stability(
        self, network: nn.Module, anchor: Anchor, training: Training, outputs: Tensor
    ) -> Stability:
        rule = read_optimizers(training.optimizers, network, anchor.trained)
        y = anchor.probe.y
        if y is None:
            raise ValueError(anchor.probe.why_none)
        loss = find_loss(self.loss, training.module, outputs, y)
        return stability(
            rule,
            loss,
            outputs,
            y,
            lambda names: self.take.kernel(network, names, anchor.probe, "full"),
            lambda names: self.take.operator(network, names, anchor.probe),
        )

    def _anchor_for(self, network: nn.Module) -> Anchor:
        if self.anchor is None:
            raise value_error(
                "network",
                "anchored before it is measured",
                "no anchor yet",
                "Call drop_anchor(network, probe, step) first.",
            )
        self.anchor.check_matches(network)
        first = next(network.parameters())
        if self.anchor.probe.x.device != first.device:
            self.anchor = self.anchor.to(first.device)
        return self.anchor

    def _say_undefined(self, reasons: Mapping[str, str]) -> None:
        for name, reason in reasons.items():
            if name not in self._said:
                self._said.add(name)
                text = f"{self._names + name!r} is not measured: {reason}"
                warnings.warn(text, UserWarning, stacklevel=3)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only. Its size is about that of the model (θ_0)."""
        return {
            "version": 1,
            "output": self.take.output,
            "anchor": None if self.anchor is None else self.anchor.state_dict(),
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
            if state["output"] != self.take.output:  # kernels of two outputs cannot be compared
                raise value_error(
                    "output",
                    f"{state['output']!r}, as in the run that is resumed",
                    repr(self.take.output),
                    "Resume with the same one, or start a new run.",
                )
            anchor = None if state["anchor"] is None else Anchor.from_state_dict(state["anchor"])
            history = [dict(row) for row in state["history"]]
            previous = None if (last := state.get("previous")) is None else (int(last[0]), last[1])
            spectra = [(int(step), values) for step, values in state["spectra"]]
        except KeyError as error:
            raise value_error(
                "state", "complete", f"one without {error}", "Start a new monitor."
            ) from error
        self.anchor, self.history, self.spectra = anchor, history, spectra
        self._previous = previous
