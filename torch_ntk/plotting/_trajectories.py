"""Plot quantities over training time, with the spread of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._checks import check_finite_number, value_error
from ._axes import GREY, Array, array, axes_for, legend, name_axes, style

_BAND = 0.2  # the opacity of a band


def plot_trajectories(
    times: Any,
    mean: Any = None,
    std: Any = None,
    *,
    samples: Any = None,
    labels: Sequence[str] | None = None,
    width: float = 2.0,
    log_time: bool = False,
    xlabel: str = "training time t",
    ylabel: str = "output f_t(x)",
    title: str = "",
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Plot lines over training time, with bands mean ± `width`·std and members of an ensemble.

    Pass the mean and standard deviation that `torch_ntk.predict.ensemble_mse` predicts, or the
    outputs of trained networks as `samples`, or both: then the bands are drawn behind the lines of
    the samples. Lines are interrupted where a value is not finite.

    Args:
        times: The times `[T]`; infinite ones are left out.
        mean: The mean `[T]`, or `[T, L]` for L lines; None takes mean and spread of the samples.
        std: The standard deviation, in the shape of `mean`.
        samples: The outputs of S trained networks, `[S, T]` or `[S, T, L]`, drawn as thin lines.
        labels: L names for the legend.
        width: Half the width of the bands, in standard deviations.
        log_time: Whether time is drawn on a logarithmic axis; times of 0 are then left out.
        xlabel: The label of the horizontal axis.
        ylabel: The label of the vertical axis.
        title: The title of the axes.
        ax: The axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes do not fit each other, or there is neither mean nor samples.

    Example:
        >>> import torch
        >>> from torch_ntk.plotting import plot_trajectories
        >>> t = torch.linspace(0, 4, 9)
        >>> figure, axes = plot_trajectories(t, 1 - torch.exp(-t), 0.3 * torch.exp(-t))
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['mean ± 2 standard deviations']
    """
    t = array("times", times, (1,))
    check_finite_number("width", width, minimum=0.0)
    runs = None if samples is None else _lines("samples", samples, t, leading=1)
    middle = None if mean is None else _lines("mean", mean, t)
    spread = None if std is None else _lines("std", std, t)
    if middle is None:
        if runs is None:
            raise value_error("mean", "given where there are no samples", "None")
        middle = runs.mean(0)
        if spread is None and len(runs) > 1:
            spread = runs.std(0, ddof=1)
    for name, other in (("std", spread), ("samples", None if runs is None else runs[0])):
        if other is not None and other.shape != middle.shape:
            raise value_error(name, f"of {middle.shape[1]} lines as mean", f"{other.shape[1]}")
    if labels is not None and len(labels) != middle.shape[1]:
        raise value_error("labels", f"{middle.shape[1]} names", f"{len(labels)}")
    kept = np.isfinite(t) & ((t > 0) | (not log_time))
    if not kept.any():
        raise value_error("times", "finite" + (" and positive" if log_time else ""), f"{t}")
    figure, axes = axes_for(ax, 7.0)
    if log_time:
        axes.set_xscale("log")
    for k in range(middle.shape[1]):
        look = style(k)
        if spread is not None:
            low, high = (middle[:, k] + sign * width * spread[:, k] for sign in (-1, 1))
            _band(axes, t[kept], low[kept], high[kept], look["color"])
        for run in () if runs is None else runs:
            axes.plot(t[kept], _finite(run[kept, k]), linewidth=0.6, alpha=0.5, color=look["color"])
        axes.plot(
            t[kept],
            _finite(middle[kept, k]),
            linewidth=1.8,
            label=None if labels is None else labels[k],
            **look,
        )
    if spread is not None:  # an empty band, for the legend
        label = f"mean ± {width:g} standard deviations"
        axes.fill_between([], [], [], color=GREY, alpha=_BAND, linewidth=0, label=label)
    axes.margins(x=0)
    name_axes(axes, xlabel, ylabel, title)
    legend(axes, beside=ax is None)
    return figure, axes


def _lines(name: str, value: object, t: Array, leading: int = 0) -> Array:
    """`value` as `[..., T, L]`."""
    found = array(name, value, (leading + 1, leading + 2))
    if found.shape[leading] != len(t):
        raise value_error(
            name,
            f"of {len(t)} times in dimension {leading}, as `times`",
            f"shape {found.shape}",
        )
    return found[..., None] if found.ndim == leading + 1 else found


def _finite(line: Array) -> Array:
    return np.where(np.isfinite(line), line, np.nan)


def _band(axes: Axes, t: Array, low: Array, high: Array, color: str) -> None:
    finite = np.isfinite(low) & np.isfinite(high)
    axes.fill_between(t, low, high, where=finite, color=color, alpha=_BAND, linewidth=0)
    # Thin edges distinguish overlapping bands.
    for edge in (low, high):
        axes.plot(t, np.where(finite, edge, np.nan), linewidth=0.5, alpha=0.6, color=color)
