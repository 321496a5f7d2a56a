"""The registry of all metrics that can be logged, and the charts that show them.

To add a metric, write a function of a `Moment` with the decorator `@_metric(...)` here, and a row
in the table of `tests/monitor/test_monitor_metrics.py`. Everything else follows from the arguments
of the decorator and the docstring: the name that users may request and its meaning, the quantities
stored at the reference, the curve in the figure of the history, and the chart on TensorBoard's page
of custom scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import metrics as m
from ..._checks import ArgumentError, UndefinedError, check_choice, describe, type_error
from ..._optimizers import NoStepError
from ..stability import find_loss, read_optimizers
from ..stability._critical_step import critical_multiple
from ..stability._stability import stability
from ..stability._training_loss import IGNORED, loss_of
from ._evaluation import FLOAT32_ROUNDING
from ._infinite_kernel import mean_kernel
from ._metric import Curve, Metric, Need, Panel, Values
from ._moment import Moment
from ._statistics import with_statistics

LAZY = Panel("is it lazy?")
_KNOWN = 0.03  # the largest error of a linearization gap that rounding may make

_LOSS = Panel("loss: as the kernel at the start predicts it, and as it is")
_MOVEMENT = Panel("relative movement")
_ALIGNMENT = Panel("alignment with the targets")
_EIGENVALUES = Panel("eigenvalues", logarithmic=True)
_CONDITION = Panel("condition number", in_figure=False)
_RANK = Panel("rank")
_SPEED = Panel("speed of the kernel per step", logarithmic=True)
_EDGE = Panel("step size against curvature")
_SHARPNESS = Panel("curvature along the last step", logarithmic=True)
_MODULES = Panel("drift of each module")
_INFINITE = Panel("distance to the infinite network")
_TIME = Panel("share of the time", in_figure=False)

PANELS = (
    *(LAZY, _LOSS, _MOVEMENT, _ALIGNMENT, _EIGENVALUES, _CONDITION, _RANK),
    *(_SPEED, _EDGE, _SHARPNESS, _MODULES, _INFINITE, _TIME),
)
"""All charts in the order in which they are shown."""

REGISTRY: dict[str, Metric] = {}
"""Every metric by its name."""

Compute = Callable[[Moment], Values]


def _metric(
    label: str, panel: Panel, *needs: Need, beside: Sequence[Curve] = (), **options: Any
) -> Callable[[Compute], Compute]:
    """Register a function `_name` as the metric `name`, with its docstring as the meaning.

    Args:
        label: The label of its curve in a legend, or "" for a family of curves `name/<module>`.
        panel: The chart of its curve.
        *needs: The quantities that it needs, as in `Metric`.
        beside: The curves of other values that the function returns.
        **options: The attributes `on_request` and `on_validation` of `Metric`.
    """

    def register(compute: Compute) -> Compute:
        name = compute.__name__.removeprefix("_")
        own = Curve(name if label else f"{name}/", label, panel)
        meaning = " ".join((compute.__doc__ or "").split())
        REGISTRY[name] = Metric(name, compute, needs, (own, *beside), meaning, **options)
        return compute

    return register


def _spectral(name: str, label: str, panel: Panel, meaning: str, is_limit: bool = False) -> None:
    """Register the attribute `name` of `SpectralSummary` as a metric."""
    curve = Curve(name, label, panel, is_limit)
    REGISTRY[name] = Metric(
        name, lambda now: float(getattr(now.spectrum, name)), ("spectrum",), (curve,), meaning
    )


# ---------------------------------------------------------------------- measured by default
@_metric("kernel drift", LAZY, "kernel", on_validation=True)
def _drift(now: Moment) -> Values:
    """‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F, which is 0 for lazy training."""
    return m.kernel_drift(now.kernel, now.kernel_0)


@_metric("kernel distance", LAZY, "kernel", on_validation=True)
def _kernel_distance(now: Moment) -> Values:
    """1 - ⟨Θ_t, Θ_0⟩_F / (‖Θ_t‖_F ‖Θ_0‖_F): how far Θ_t has turned, from 0 to 1."""
    return m.kernel_distance(now.kernel, now.kernel_0)


_spectral("lambda_min", "λ_min", _EIGENVALUES, "The smallest eigenvalue of Θ_t.")
_spectral("lambda_max", "λ_max", _EIGENVALUES, "The largest eigenvalue of Θ_t.")
_spectral("condition", "condition", _CONDITION, "λ_max / λ_min of Θ_t.")
_spectral("effective_rank", "effective rank", _RANK, "exp(entropy of the spectrum of Θ_t).")


@_metric("alignment", _ALIGNMENT, "kernel", on_validation=True)
def _alignment(now: Moment) -> Values:
    """The cosine between Θ_t and the Gram matrix of the targets."""
    y, outputs = now.targets, now.reference.size
    places = y[0].numel()
    if not y.is_floating_point() and y.ndim > 1 and outputs % places == 0 and outputs > places:
        return m.kernel_alignment(now.kernel, _of_many_labels(y, outputs // places))
    # The last classes may be missing from the probe; a single output may stand for two classes.
    is_labels = not y.is_floating_point() and y.ndim == 1 and outputs > 1
    return m.kernel_alignment(now.kernel, y, num_classes=outputs if is_labels else None)


def _of_many_labels(y: Tensor, classes: int) -> Tensor:
    """Targets Y `[N, N]` with the same Gram matrix YYᵀ as one-hot vectors of labels at P places.

    The vector of class c is e_c - 1/C. An entry of the Gram matrix is the mean over the places of 1
    - 1/C if two samples have the same class there, and of -1/C if they have different classes.
    Places without a label contribute 0. No tensor of N·P·C entries is formed.
    """
    labels = y.reshape(len(y), -1)
    known = labels != IGNORED
    rows = [
        (((own == labels).double() - 1.0 / classes) * (has & known)).mean(1)
        for own, has in zip(labels, known, strict=True)
    ]
    values, vectors = torch.linalg.eigh(torch.stack(rows))
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root


@_metric("parameters", _MOVEMENT, beside=[Curve("buffer_drift", "running statistics", _MOVEMENT)])
def _param_drift(now: Moment) -> Values:
    """‖θ_t - θ_0‖ / ‖θ_0‖, and the same for floating-point buffers as `buffer_drift`."""
    start, values = now.reference, {}
    params = {n: p for n, p in now.network.named_parameters() if n in start.trained}
    try:
        values["param_drift"] = float(m.param_drift(params, {n: start.params[n] for n in params}))
    except ArgumentError as error:  # `buffer_drift` may still be defined
        now.undefined["param_drift"] = str(error)
    buffers = {
        n: b
        for n, b in now.network.named_buffers()
        if n in start.buffers
        and b.is_floating_point()
        and b.numel()
        # An infinite buffer is a constant such as an attention mask.
        and bool(start.buffers[n].isfinite().all())
    }
    first = {n: start.buffers[n] for n in buffers}
    if any(bool(b.any()) for b in first.values()):
        values["buffer_drift"] = float(m.param_drift(buffers, first))
    return values


@_metric("through statistics", _MOVEMENT)
def _statistics_share(now: Moment) -> Values:
    """‖f(θ_t, s_t) - f(θ_t, s_0)‖ / ‖f_t - f_0‖, where s are running statistics on the probe."""
    f_0, reference = now.reference.outputs, now.reference
    if not now.statistics or f_0 is None or now.is_reference:
        return {}
    moved = now.outputs - f_0
    if not bool(moved.any()):
        return {}
    with with_statistics(now.network, {n: reference.buffers[n] for n in now.statistics}):
        f = now.evaluation.outputs(now.network, reference.trained, reference.probe)
    return float((now.outputs - f).norm() / moved.norm())


@_metric("linearization gap", LAZY, "movement", on_validation=True)
def _linearization_gap(now: Moment) -> Values:
    """‖f_t - f_t^lin‖ / ‖f_t - f_0‖ with f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩."""
    movement, precision = now.movement, now.evaluation.movement_dtype(now.network)
    moved = float(movement.moved.norm())
    shown = movement.outputs.norm() * (now.numbers / movement.outputs.numel()) ** 0.5
    unknown = FLOAT32_ROUNDING * float(shown)
    stands_still = not bool(movement.moved.any()) and not bool(movement.missed.any())
    if precision == torch.float32 and _KNOWN * moved < unknown and not stands_still:
        raise UndefinedError(
            f"the outputs have moved by {moved / float(shown):.1g} of their size, and float32 "
            f"knows them to {FLOAT32_ROUNDING:.0e}. It is measured once they have moved further; "
            "dtype=torch.float64 measures it now."
        )
    return movement.gap


@_metric("velocity", _SPEED, "kernel")
def _velocity(now: Moment) -> Values:
    """‖Θ_t - Θ_s‖_F / (‖Θ_t‖_F (t - s)), where s is the step of the measurement before."""
    if now.previous is None or now.step <= now.previous[0]:
        return {}
    step, kernel = now.previous
    return m.kernel_drift(kernel.to(now.kernel.device), now.kernel) / (now.step - step)


_spectral("numerical_rank", "numerical rank", _RANK, "Eigenvalues of Θ_t above the noise floor.")
_spectral(
    "noise_floor",
    "noise floor",
    _EIGENVALUES,
    "The size below which an eigenvalue of Θ_t is rounding error.",
    is_limit=True,
)


# ---------------------------------------------------------------------- measured on request
@_metric(
    "lr · λ_max of the loss",
    _EDGE,
    "outputs",
    beside=[Curve("stability_limit", "limit", _EDGE, is_limit=True)],
    on_request=True,
)
def _stability(now: Moment) -> Values:
    """The learning rate times the largest curvature of the loss; see `StabilityEdge`."""
    network, reference, evaluation = now.network, now.reference, now.evaluation
    probe = reference.probe
    rule = read_optimizers(now.training.optimizers, network, reference.trained)
    y, optimizer = now.targets, rule.preconditioner
    try:
        return stability(
            rule,
            find_loss(now.loss, now.training.module, now.outputs, y),
            now.outputs,
            y,
            lambda names: evaluation.kernel(network, names, probe, "full", optimizer),
            lambda names: evaluation.operator(network, names, probe, optimizer),
        )
    except NoStepError:  # there is no P before the first step
        return {}


@_metric(
    "critical sharpness",
    _SHARPNESS,
    "last_step",
    beside=[Curve("critical_sharpness_limit", "2 / lr", _SHARPNESS, is_limit=True)],
    on_request=True,
)
def _critical_sharpness(now: Moment) -> Values:
    """2 / lr_c, where the last step would have raised the loss with a learning rate above lr_c."""
    # On a quadratic with the Hessian H, a step -lr u at the gradient g raises the loss if lr is
    # larger than lr_c = 2 gᵀu / uᵀHu. The metric is then uᵀHu / gᵀu, a curvature to compare with
    # 2 / lr (Kalra et al., "A scalable measure of loss landscape curvature", 2026, for the next
    # step). Here it starts from θ_{t-1}, since the direction of the last step is known for every
    # optimizer.
    last = now.last_step
    if last is None:
        return {}
    lr, y = last.lr(now.network, now.training.optimizers), now.targets

    def loss(f: Tensor, y: Tensor) -> float:
        return loss_of(find_loss(now.loss, now.training.module, f, y), f, y)

    probe, recalibrate = now.reference.probe, bool(now.statistics)
    with last.losses(now.network, probe, now.evaluation, loss, y, recalibrate) as along:
        if along is None or lr <= 0.0:
            return {}
        multiple = critical_multiple(along)
    if multiple is None:
        raise UndefinedError(
            f"the step before step {now.step} raises the loss on the probe however short it is, as "
            "steps on noisy batches may. Such steps are left out."
        )
    return {"critical_sharpness": 2.0 / (multiple * lr), "critical_sharpness_limit": 2.0 / lr}


@_metric("", _MODULES, "parts", on_request=True)
def _module_drift(now: Moment) -> Values:
    """The drift of Θ_m for each module m, where Θ_t = Σ_m Θ_m and Θ_m is by its parameters."""
    if now.reference.parts is None:
        raise UndefinedError("the reference has no parts of the kernel to compare with.")
    values, zero = {}, []
    for name, part in now.parts.items():
        start = now.reference.parts[name]
        if bool(start.any()):
            values[f"module_drift/{name}"] = float(m.kernel_drift(part, start))
        else:
            zero.append(name)
    if zero:
        now.undefined[f"module_drift of {', '.join(zero)}"] = (
            "the part of the kernel was 0 at the reference, as it is before a layer of zeros."
        )
    return values


@_metric("distance", _INFINITE, "kernel", "infinite", on_request=True)
def _infinite_gap(now: Moment) -> Values:
    """‖Θ_t - Θ_∞‖_F / ‖Θ_∞‖_F, where Θ_∞ is the `analytic_ntk` of the network.

    Ordinary layers are assumed to have PyTorch's default initialization, or else the variances that
    their weights and biases have at the reference.
    """
    limit = now.infinite
    if now.optimizer is not None:
        raise UndefinedError(
            "the infinite kernel is that of gradient descent: measure it with kernel='gradient'."
        )
    if limit is None:
        raise UndefinedError("the reference has no kernel of the infinitely wide network.")
    mean = mean_kernel(now.kernel, now.evaluation.output, now.reference.size)
    return m.kernel_drift(mean.to(limit.dtype), limit)


@_metric("effective rank of the NNGP kernel", _RANK, "outputs", on_request=True)
def _nngp_rank(now: Moment) -> Values:
    """exp(entropy of the spectrum of f_t f_tᵀ / O), at most O."""
    return m.effective_rank(now.outputs @ now.outputs.T / now.outputs.shape[1])


# ---------------------------------------------------------------------- read from the registry
METRICS = tuple(metric.name for metric in REGISTRY.values() if not metric.on_request)
"""The metrics that are measured by default."""

OPTIONAL = tuple(metric.name for metric in REGISTRY.values() if metric.on_request)
"""The metrics that are measured on request."""

SPECTRAL = tuple(metric.name for metric in REGISTRY.values() if "spectrum" in metric.needs)
"""The metrics that are read from the eigenvalues of the kernel."""

MEANINGS: dict[str, str] = {metric.name: metric.meaning for metric in REGISTRY.values()}
"""The meaning of each metric, by its name."""

OVERHEAD = Curve("overhead", "overhead", _TIME)
"""The curve of every session with the share of the time that measurements take."""

FORECAST_CURVES = (Curve("predicted", "predicted", _LOSS), Curve("actual", "actual", _LOSS))
"""The curves of a session that forecasts the loss."""

_CURVES: dict[str, Curve] = {
    curve.name: curve
    for curves in (
        *((*metric.curves, *metric.validation_curves) for metric in REGISTRY.values()),
        (*FORECAST_CURVES, OVERHEAD),
    )
    for curve in curves
}


def curve_of(name: str) -> Curve | None:
    """The curve of a number that is logged as `name`, without prefix, or None."""
    return _CURVES.get(name) or _CURVES.get(f"{name.partition('/')[0]}/")


def read_metrics(metrics: object) -> tuple[Metric, ...]:
    """The metrics of the given names, each once; the errors name the argument `metrics`."""
    known = tuple(REGISTRY)
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise type_error(
            "metrics",
            "a sequence of metric names",
            describe(metrics),
            f"Choose from {', '.join(known)}, as in metrics=('drift',).",
        )
    names = dict.fromkeys(check_choice("metrics", name, known) for name in metrics)
    return tuple(REGISTRY[name] for name in names)
