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
from .._functional import model_function, quiet, unwrap
from .._types import Output, ParameterSelection
from ..empirical import empirical_ntk
from ..empirical._trial import try_out
from ._anchor import Anchor, snapshot
from ._outputs import current_outputs, linearized_outputs
from ._probe import Probe

METRICS = (
    "drift",
    "lambda_min",
    "lambda_max",
    "condition",
    "effective_rank",
    "alignment",
    "param_drift",
    "linearization_gap",
)
SPECTRAL = ("lambda_min", "lambda_max", "condition", "effective_rank")
_NEED_KERNEL = (*SPECTRAL, "drift", "alignment")
_OUTPUTS = ("mean", "trace", "pseudo", "full")


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
                message("metrics", "a sequence of metric names", describe(metrics), str(METRICS))
            )
        for name in metrics:
            check_choice("metrics", name, METRICS)
        if batch_size is not None:
            check_positive_int("batch_size", batch_size)
        self.metrics = tuple(dict.fromkeys(metrics))
        self.output: Output = output
        check_choice("output", output, _OUTPUTS)
        check_choice("method", method, ("auto", "jacobian", "vector_product"))
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                message("dtype", "None, torch.float32 or torch.float64", str(dtype), "")
            )
        self.params = params
        self.batch_size = batch_size
        self.dtype = dtype
        self.method = method
        self.anchor: Anchor | None = None
        self.history: list[dict[str, float]] = []
        self.spectra: list[tuple[int, Tensor]] = []
        self._warned_targets = False
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
        outputs = current_outputs(network, trained, probe.x, precision, self._chunk(probe))
        self.anchor = Anchor(
            step=step,
            trained=trained,
            params=snapshot(dict(network.named_parameters())),
            buffers=snapshot(dict(network.named_buffers())),
            probe=probe,
            outputs=outputs,
            kernel=self._kernel(network, trained, probe) if self._needs_kernel else None,
        )
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
        at_anchor = step == anchor.step and not self.history
        scalars: dict[str, float] = {}
        kernel = eigenvalues = outputs = linearized = None
        if self._needs_kernel:
            kernel = (
                anchor.kernel if at_anchor else self._kernel(network, anchor.trained, anchor.probe)
            )
            assert kernel is not None
            eigenvalues = self._kernel_scalars(kernel, anchor, scalars)
        if "linearization_gap" in self.metrics:
            precision, chunk = self._precision(anchor.probe.x.device), self._chunk(anchor.probe)
            outputs = current_outputs(network, anchor.trained, anchor.probe.x, precision, chunk)
            linearized = linearized_outputs(network, anchor, precision, chunk)
            scalars["linearization_gap"] = float(
                m.linearization_gap(outputs, linearized, anchor.outputs)
            )
        if "param_drift" in self.metrics:
            self._movement_scalars(network, anchor, scalars)
        scalars["seconds"] = time.perf_counter() - started
        if at_anchor:
            scalars["seconds"] += self._anchor_seconds
        self.history.append({"step": float(step), **scalars})
        if eigenvalues is not None:
            self.spectra.append((step, eigenvalues.cpu()))
        return Observation(step, scalars, kernel, eigenvalues, outputs, linearized)

    @property
    def _needs_kernel(self) -> bool:
        return any(name in _NEED_KERNEL for name in self.metrics)

    def _precision(self, device: torch.device) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return torch.float32 if device.type == "mps" else torch.float64

    def _chunk(self, probe: Probe) -> int:
        return self.batch_size or probe.x.shape[0]

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
                message("network", "anchored before it is measured", "no anchor yet", "")
            )
        self.anchor.check_matches(network)
        first = next(network.parameters())
        if self.anchor.probe.x.device != first.device:
            self.anchor = self.anchor.to(first.device)
        return self.anchor

    def _kernel_scalars(
        self, kernel: Tensor, anchor: Anchor, scalars: dict[str, float]
    ) -> Tensor | None:
        if "drift" in self.metrics:
            assert anchor.kernel is not None
            scalars["drift"] = float(m.kernel_drift(kernel, anchor.kernel))
        if "alignment" in self.metrics and anchor.probe.y is not None:
            self._alignment(kernel, anchor, scalars)
        if not any(name in SPECTRAL for name in self.metrics):
            return None
        summary = m.spectral_summary(kernel)
        values = {
            "lambda_min": summary.lambda_min,
            "lambda_max": summary.lambda_max,
            "condition": summary.condition,
            "effective_rank": summary.effective_rank,
        }
        scalars.update({k: v for k, v in values.items() if k in self.metrics})
        return summary.eigenvalues

    def _alignment(self, kernel: Tensor, anchor: Anchor, scalars: dict[str, float]) -> None:
        """Alignment is measured where the targets define it; elsewhere one warning says why not."""
        y = anchor.probe.y
        assert y is not None
        outputs = anchor.outputs.shape[1]
        is_labels = not y.is_floating_point() and y.ndim == 1 and outputs > 1
        try:
            scalars["alignment"] = float(
                m.kernel_alignment(kernel, y, num_classes=outputs if is_labels else None)
            )
        except (TypeError, ValueError) as error:
            if not self._warned_targets:
                self._warned_targets = True
                warnings.warn(
                    f"The alignment with the targets is not measured: {error}",
                    UserWarning,
                    stacklevel=2,
                )

    def _movement_scalars(
        self, network: nn.Module, anchor: Anchor, scalars: dict[str, float]
    ) -> None:
        now = {n: p for n, p in network.named_parameters() if n in anchor.trained}
        then = {n: anchor.params[n] for n in now}
        scalars["param_drift"] = float(m.param_drift(now, then))
        moving = {n: b for n, b in network.named_buffers() if b.is_floating_point()}
        start = {n: b for n, b in anchor.buffers.items() if n in moving}
        if start and any(bool(b.any()) for b in start.values()) and start.keys() == moving.keys():
            scalars["buffer_drift"] = float(m.param_drift(moving, start))

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only. Its size is about that of the model (θ_0)."""
        return {
            "version": 1,
            "anchor": None if self.anchor is None else self.anchor.state_dict(),
            "history": [dict(row) for row in self.history],
            "spectra": [[step, values] for step, values in self.spectra],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; nothing changes if it cannot be used.

        Raises:
            ValueError: It is not a state of this version.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1:
            raise ValueError(
                message("state", "a state of version 1", describe(state), "Start a new monitor.")
            )
        try:
            anchor = None if state["anchor"] is None else Anchor.from_state_dict(state["anchor"])
            history = [dict(row) for row in state["history"]]
            spectra = [(int(step), values) for step, values in state["spectra"]]
        except KeyError as error:
            raise ValueError(
                message("state", "complete", f"one without {error}", "Start a new monitor.")
            ) from error
        self.anchor, self.history, self.spectra = anchor, history, spectra
