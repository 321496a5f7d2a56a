"""The numbers of one measurement, and why a number is missing where it is not defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from .. import metrics as m
from .._types import Output, Parameters
from ._anchor import Anchor
from ._stability import Stability
from ._take import mean_kernel

METRICS = (
    "drift",
    "lambda_min",
    "lambda_max",
    "condition",
    "effective_rank",
    "alignment",
    "param_drift",
    "linearization_gap",
    "velocity",
    "numerical_rank",
    "noise_floor",
)
OPTIONAL = ("stability", "module_drift", "infinite_gap")
SPECTRAL = (
    "lambda_min",
    "lambda_max",
    "condition",
    "effective_rank",
    "numerical_rank",
    "noise_floor",
)
NEED_KERNEL = (*SPECTRAL, "drift", "alignment", "velocity", "module_drift", "infinite_gap")


@dataclass
class Scalars:
    """Metrics by name.

    Attributes:
        values: Those that have a value.
        undefined: Why the others have none: a drift relative to a kernel of zero, an alignment
            with targets of one class. A training does not end for them.
    """

    values: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, metric: Callable[[], Tensor]) -> None:
        """Add what `metric` returns, or the reason that it gives for returning nothing."""
        try:
            self.values[name] = float(metric())
        except (TypeError, ValueError) as error:
            self.undefined[name] = str(error)

    def put_kernel(
        self, kernel: Tensor, anchor: Anchor, names: Sequence[str], eps: float
    ) -> Tensor | None:
        """Add what is known from Θ_t; returns its spectrum if that was computed.

        Args:
            kernel: Θ_t.
            anchor: What it is compared with.
            names: The metrics that are wanted.
            eps: The relative precision of its eigenvalues.
        """
        if "drift" in names:
            self.put("drift", lambda: _drift(kernel, anchor))
        if "alignment" in names:
            self.put("alignment", lambda: _alignment(kernel, anchor))
        if not any(name in SPECTRAL for name in names):
            return None
        summary = m.spectral_summary(kernel, eps=eps)
        found = {n: float(getattr(summary, n)) for n in SPECTRAL if n in names}
        self.values.update(found)
        return summary.eigenvalues

    def put_velocity(self, kernel: Tensor, step: int, previous: tuple[int, Tensor] | None) -> None:
        """Add how fast the kernel moves, from the second measurement on.

        That is ‖Θ_t - Θ_s‖_F / (‖Θ_t‖_F (t - s)), s the step of the measurement before.
        """
        if previous is None or step <= previous[0]:
            return
        before = previous[1].to(kernel.device)
        self.put("velocity", lambda: m.kernel_drift(before, kernel) / (step - previous[0]))

    def put_parts(self, parts: Parameters, anchor: Anchor) -> None:
        """Add the drift of each module's part of the kernel."""
        if anchor.parts is None:
            self.undefined["module_drift"] = "the run was anchored without the parts of the kernel."
            return
        still = []
        for name, part in parts.items():
            start = anchor.parts[name]
            if bool(start.any()):
                self.values[f"module_drift/{name}"] = float(m.kernel_drift(part, start))
            else:
                still.append(name)
        if still:
            self.undefined[f"module_drift of {', '.join(still)}"] = (
                "the part of the kernel was 0 at the anchor, as it is behind a layer of zeros."
            )

    def put_infinite_gap(self, kernel: Tensor, output: Output, anchor: Anchor) -> None:
        """Add the distance to the kernel of the limit of infinite width, where there is one."""
        limit = anchor.infinite
        if limit is None:
            self.undefined["infinite_gap"] = "the run was anchored without the infinite kernel."
            return
        now = mean_kernel(kernel, output, anchor.outputs.shape[1]).to(limit.dtype)
        self.put("infinite_gap", lambda: m.kernel_drift(now, limit))

    def put_stability(self, measured: Callable[[], Stability]) -> None:
        """Add the step size against the curvature, its limit, and the curvature."""
        try:
            found = measured()
        except ValueError as error:
            self.undefined["stability"] = str(error)
            return
        self.values.update(stability=found.value, stability_limit=found.limit)
        if found.sharpness is not None:
            self.values["sharpness"] = found.sharpness

    def put_movement(self, network: nn.Module, anchor: Anchor) -> None:
        """Add how far the parameters by which the kernel is taken, and the buffers, have moved."""
        now = {n: p for n, p in network.named_parameters() if n in anchor.trained}
        then = {n: anchor.params[n] for n in now}
        self.put("param_drift", lambda: m.param_drift(now, then))
        moving = {n: b for n, b in network.named_buffers() if b.is_floating_point()}
        start = {n: b for n, b in anchor.buffers.items() if n in moving}
        # An infinite buffer is a constant such as an attention mask.
        moves = {n for n, b in start.items() if bool(b.isfinite().all()) and b.numel()}
        if any(bool(start[n].any()) for n in moves):
            moved = m.param_drift({n: moving[n] for n in moves}, {n: start[n] for n in moves})
            self.values["buffer_drift"] = float(moved)


def _drift(kernel: Tensor, anchor: Anchor) -> Tensor:
    if anchor.kernel is None:
        raise ValueError("the run was anchored without a kernel to compare with.")
    return m.kernel_drift(kernel, anchor.kernel)


def _alignment(kernel: Tensor, anchor: Anchor) -> Tensor:
    y = anchor.probe.y
    if y is None:
        raise ValueError(anchor.probe.why_none)
    outputs = anchor.outputs.shape[1]
    # The last classes may be missing from the probe; a single output may stand for two classes.
    is_labels = not y.is_floating_point() and y.ndim == 1 and outputs > 1
    return m.kernel_alignment(kernel, y, num_classes=outputs if is_labels else None)
