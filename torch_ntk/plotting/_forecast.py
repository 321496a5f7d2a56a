"""Plot a predicted loss curve together with the real one."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._checks import value_error
from ._axes import COLORS, Array, array, axes_for, legend, name_axes

_MARK = "forecast"  # the group id by which predicted curves are found in their axes


class ForecastLike(Protocol):
    """The attributes that `plot_forecast` reads, such as those of a `Forecast`."""

    @property
    def steps(self) -> Any:
        """The numbers of the steps `[T]`."""

    @property
    def loss(self) -> Any:
        """The predicted training loss `[T]`."""

    @property
    def mode_steps(self) -> Any:
        """The number of steps in which each mode is learned, `[D]`; infinite if it is not."""

    @property
    def lr(self) -> float:
        """The learning rate."""

    @property
    def max_lr(self) -> float:
        """The largest stable learning rate."""

    @property
    def stable(self) -> bool:
        """Whether `lr` is below `max_lr`."""


def plot_forecast(
    forecast: ForecastLike,
    actual: Any = None,
    *,
    log_steps: bool = False,
    modes: bool = True,
    label: str = "",
    title: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Plot the predicted training loss over the steps, and the real one if it is given.

    Small marks above the horizontal axis show the steps at which the eigenmodes of the kernel have
    decayed to 1/e, 1/(η λ_i).

    Args:
        forecast: A result of `torch_ntk.forecasting.forecast`.
        actual: The real losses at the steps of the forecast `[T]`, or `(steps, losses)`.
        log_steps: Whether steps are drawn on a logarithmic axis; step 0 is then left out.
        modes: Whether to mark the times of the eigenmodes.
        label: A prefix of the names in the legend, for several forecasts in one `ax`.
        title: The title of the axes; None states the learning rate and the largest stable one.
        ax: The axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        TypeError, ValueError: `actual` does not fit the forecast.
    """
    steps = array("forecast.steps", forecast.steps, (1,))
    loss = array("forecast.loss", forecast.loss, (1,))
    real = None if actual is None else _actual(actual, steps)
    figure, axes = axes_for(ax)
    # Each further forecast in the same axes gets the next color.
    number = sum(line.get_gid() == _MARK for line in axes.lines)
    color = COLORS[number % len(COLORS)]
    name = f"{label}: " if label else ""
    kept = _shown(steps, log_steps)
    if real is not None:
        at = _shown(real[0], log_steps)
        axes.plot(
            real[0][at],
            _positive(real[1][at]),
            linestyle="none" if len(real[0]) <= 40 else "-",
            marker="o" if len(real[0]) <= 40 else None,
            markersize=4,
            linewidth=2.6,
            alpha=0.45,
            color=color,
            label=f"{name}trained network",
        )
    (line,) = axes.plot(
        steps[kept],
        _positive(loss[kept]),
        linestyle="--",
        linewidth=1.5,
        color=color,
        label=f"{name}predicted from Θ_0",
    )
    line.set_gid(_MARK)
    values = np.concatenate([loss, *([] if real is None else [real[1]])])
    if (np.isfinite(values) & (values > 0)).any():
        axes.set_yscale("log")
    if log_steps:
        axes.set_xscale("log")
    if modes:
        inside = array("forecast.mode_steps", forecast.mode_steps, (1,))
        _mark_modes(axes, inside, float(steps.max()), color, height=0.02 + 0.04 * number)
    title = _rates(forecast) if title is None else title
    name_axes(axes, "optimizer step", "training loss", title)
    legend(axes)
    return figure, axes


def _rates(forecast: ForecastLike) -> str:
    largest = "∞" if math.isinf(forecast.max_lr) else f"{forecast.max_lr:.3g}"
    verdict = "" if forecast.stable else ": diverges"
    return f"lr {forecast.lr:.3g}, largest stable {largest}{verdict}"


def _actual(actual: Any, steps: Array) -> tuple[Array, Array]:
    if isinstance(actual, tuple):
        if len(actual) != 2:
            raise value_error("actual", "losses or (steps, losses)", actual)
        at, losses = (array("actual", part, (1,)) for part in actual)
    else:
        at, losses = steps, array("actual", actual, (1,))
    if at.shape != losses.shape:
        raise value_error(
            "actual",
            f"one loss for each of the {len(at)} steps",
            f"{len(losses)} losses",
            "Pass (steps, losses) for losses at other steps.",
        )
    return at, losses


def _shown(steps: Array, log_steps: bool) -> Array:
    return np.asarray((steps > 0) if log_steps else np.isfinite(steps))


def _positive(values: Array) -> Array:
    """The values with NaN in place of those that a logarithmic axis cannot show."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _mark_modes(axes: Axes, mode_steps: Array, last: float, color: str, *, height: float) -> None:
    inside = mode_steps[(mode_steps > 0) & (mode_steps <= last)]
    if not inside.size:
        return
    axes.plot(
        inside,
        np.full(inside.size, height),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="|",
        markersize=8,
        color=color,
        alpha=0.7,
        label=f"1/(η λ_i): {inside.size} of {mode_steps.size} modes",
    )
