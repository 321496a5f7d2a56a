"""What is measured of a network during training, without any trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import metrics as m
from .._checks import check_choice, check_positive_int, describe, message
from .._functional import model_function, quiet, refuse_unsupported, unwrap
from .._types import Output, ParameterSelection
from ..empirical import empirical_ntk
from ..empirical._trial import try_out
from ._anchor import Anchor, snapshot
from ._outputs import check_linearizable, current_outputs, linearized_outputs
from ._probe import Probe
from ._scalars import METRICS, NEED_KERNEL, Scalars

_OUTPUTS = ("mean", "trace", "pseudo", "full")
_CHUNK = 16  # samples whose intermediate results are held at once


@dataclass(frozen=True)
class Observation:
    """One measurement.

    Attributes:
        step: Number of optimizer steps taken.
        scalars: The metrics by name, and `"seconds"`, the wall time that they took.
        kernel: Θ_t, or None if no metric needs it.
        eigenvalues: The spectrum of Θ_t, ascending, or None.
        outputs: f_t on the probe, or None.
        linearized: f_t^lin on the probe, or None.
    """

    step: int
    scalars: dict[str, float]
    kernel: Tensor | None = field(default=None, repr=False)
    eigenvalues: Tensor | None = field(default=None, repr=False)
    outputs: Tensor | None = field(default=None, repr=False)
    linearized: Tensor | None = field(default=None, repr=False)


class Observer:
    """Takes an anchor of a network and measures how far training has moved it from there.

    Θ_0, f_0 and the linearization stand on the parameters *and buffers* at the anchor, Θ_t and f_t
    on the current ones. With batch normalization f_t therefore also moves through the running
    statistics, which a linearization in θ does not know; their own movement is measured as
    `buffer_drift`.

    Args:
        metrics: Which of `METRICS` to measure.
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"` or `"full"`.
        params: Which parameters the kernel is taken by; see `torch_ntk.empirical_ntk`. They are
            determined at the anchor, so that Θ_t and Θ_0 stay comparable when layers are frozen
            or unfrozen later.
        batch_size: Samples per block; None follows the free memory.
        dtype: Precision of the measurement; None is float64 (float32 on devices without it): in
            float32 the smallest eigenvalue of a kernel is mostly noise.
        method: As in `torch_ntk.empirical_ntk`.
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
    ) -> None:
        if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
            raise TypeError(
                message(
                    "metrics",
                    "a sequence of metric names",
                    describe(metrics),
                    f"Choose from {', '.join(METRICS)}, as in metrics=('drift',).",
                )
            )
        for name in metrics:
            check_choice("metrics", name, METRICS)
        if batch_size is not None:
            check_positive_int("batch_size", batch_size)
        self.metrics = tuple(dict.fromkeys(metrics))
        self.output: Output = output
        check_choice("output", output, _OUTPUTS)
        check_choice("method", method, ("auto", "structured", "jacobian", "vector_product"))
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                message("dtype", "None, torch.float32 or torch.float64", str(dtype), "")
            )
        self.params = _check_selection(params)
        self.batch_size = batch_size
        self.dtype = dtype
        self.method = method
        self.reset()

    def reset(self) -> None:
        """Forget the anchor and everything measured."""
        self.anchor: Anchor | None = None
        self.history: list[dict[str, float]] = []
        self.spectra: list[tuple[int, Tensor]] = []
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
        precision = self._precision(device)
        probe = probe.to(device)
        with quiet(network, device):
            fn = model_function(network, self.params, precision)
            trained = tuple(fn.params)
            try_out(fn, "probe", fn.input("probe", probe.x))
        anchor = Anchor(
            step=step,
            trained=trained,
            params=snapshot(dict(network.named_parameters())),
            buffers=snapshot(dict(network.named_buffers())),
            probe=probe,
            outputs=current_outputs(network, trained, probe.x, precision, self._chunk),
            kernel=self._kernel(network, trained, probe) if self._needs_kernel else None,
        )
        if "linearization_gap" in self.metrics:
            check_linearizable(network, anchor, precision)
        self.anchor = anchor
        self._anchor_seconds = time.perf_counter() - started

    def measure(self, network: nn.Module, step: int) -> Observation:
        """Measure `network` against the anchor and add the result to the history.

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
        kernel = eigenvalues = outputs = linearized = None
        if self._needs_kernel:
            known = anchor.kernel if at_anchor else None
            kernel = self._kernel(network, anchor.trained, anchor.probe) if known is None else known
            eigenvalues = scalars.put_kernel(kernel, anchor, self.metrics)
        if "linearization_gap" in self.metrics:
            precision = self._precision(anchor.probe.x.device)
            outputs = current_outputs(
                network, anchor.trained, anchor.probe.x, precision, self._chunk
            )
            linearized = linearized_outputs(network, anchor, precision, self._chunk)
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
        if eigenvalues is not None:
            self.spectra.append((step, eigenvalues.cpu()))
        self._say_undefined(scalars.undefined)
        return Observation(step, values, kernel, eigenvalues, outputs, linearized)

    @property
    def _needs_kernel(self) -> bool:
        return any(name in NEED_KERNEL for name in self.metrics)

    @property
    def _chunk(self) -> int:
        return self.batch_size or _CHUNK

    def _precision(self, device: torch.device) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return torch.float32 if device.type == "mps" else torch.float64

    def _kernel(self, network: nn.Module, trained: tuple[str, ...], probe: Probe) -> Tensor:
        return empirical_ntk(
            network,
            probe.x,
            output=self.output,
            method=self.method,  # type: ignore[arg-type]
            params=list(trained),
            batch_size=self.batch_size,
            dtype=self._precision(probe.x.device),
        )

    def _anchor_for(self, network: nn.Module) -> Anchor:
        if self.anchor is None:
            raise ValueError(
                message(
                    "network",
                    "anchored before it is measured",
                    "no anchor yet",
                    "Call drop_anchor(network, probe, step) first.",
                )
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
                warnings.warn(f"{name!r} is not measured: {reason}", UserWarning, stacklevel=3)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only. Its size is about that of the model (θ_0)."""
        return {
            "version": 1,
            "output": self.output,
            "anchor": None if self.anchor is None else self.anchor.state_dict(),
            "history": [dict(row) for row in self.history],
            "spectra": [[step, values] for step, values in self.spectra],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; nothing changes if it cannot be used.

        Raises:
            ValueError: It is not a state of this version, or of another `output`.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1:
            raise ValueError(
                message("state", "a state of version 1", describe(state), "Start a new monitor.")
            )
        try:
            if state["output"] != self.output:  # kernels of two outputs cannot be compared
                raise ValueError(
                    message(
                        "output",
                        f"{state['output']!r}, as in the run that is resumed",
                        repr(self.output),
                        "Resume with the same one, or start a new run.",
                    )
                )
            anchor = None if state["anchor"] is None else Anchor.from_state_dict(state["anchor"])
            history = [dict(row) for row in state["history"]]
            spectra = [(int(step), values) for step, values in state["spectra"]]
        except KeyError as error:
            raise ValueError(
                message("state", "complete", f"one without {error}", "Start a new monitor.")
            ) from error
        self.anchor, self.history, self.spectra = anchor, history, spectra


def _check_selection(params: ParameterSelection) -> ParameterSelection:
    """What can be told of `params` before there is a network."""
    is_list = isinstance(params, Sequence) and not isinstance(params, (str, bytes))
    if params is None or callable(params):
        return params
    if not is_list or not all(isinstance(name, str) for name in params):
        raise TypeError(
            message("params", "None, names of parameters or a predicate", describe(params), "")
        )
    return params
