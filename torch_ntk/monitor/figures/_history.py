"""A figure of all curves of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..._checks import value_error
from ...plotting._axes import name_axes, new_figure
from ..measure._metric import Curve, Panel
from ..measure._metrics import LAZY, PANELS, curve_of
from ..measure._verdict import LAZY_BELOW, RICH_ABOVE

_MOST_NAMED = 8  # legends with more entries have smaller letters
_COLUMNS = 3
_FAR = 1e-3  # limits below this multiple of all other values are not drawn


def history_plot(
    rows: Sequence[Mapping[str, float]], *, title: str = ""
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """Everything that was measured, as a function of the optimizer step.

    Args:
        rows: One mapping for each measurement, with `"step"` and the metrics by name.
        title: A title above the panels, such as the verdict.

    Returns:
        The figure, and the array of its axes, one for each panel that has a value.

    Raises:
        ValueError: Nothing was measured.
    """
    curves: dict[Panel, dict[str, Curve]] = {panel: {} for panel in PANELS if panel.in_figure}
    for name in dict.fromkeys(name for row in rows for name in row):
        curve = curve_of(name)
        if curve is not None and curve.panel in curves:
            curves[curve.panel][name] = curve
    shown = {panel: found for panel, found in curves.items() if found}
    if not shown:
        raise value_error("history", "of at least one measurement", "an empty one")
    columns = min(_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(3.9 * columns, 2.8 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (panel, found) in zip(grid, shown.items(), strict=False):
        _draw(axes, panel, found, rows)
    for axes in grid[len(shown) :]:
        axes.remove()
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, grid[: len(shown)]


def _draw(
    axes: Axes, panel: Panel, curves: Mapping[str, Curve], rows: Sequence[Mapping[str, float]]
) -> None:
    """Draw the curves of one panel, which are given by the logged names of their values."""
    smallest = math.inf
    # Limits are drawn after the curves, as their values decide whether the limits are shown.
    for name, curve in sorted(curves.items(), key=lambda item: item[1].is_limit):
        points = [(r["step"], r[name]) for r in rows if math.isfinite(r.get(name, math.nan))]
        if panel.logarithmic:  # 0 is not defined on a logarithmic axis
            points = [(step, value) for step, value in points if value > 0.0]
        values = [value for _, value in points]
        if curve.is_limit and panel.logarithmic and values and max(values) < _FAR * smallest:
            continue  # the axis would have to be so long that the other curves look flat
        axes.plot(
            [step for step, _ in points],
            values,
            color="0.5" if curve.is_limit else None,
            linestyle=":" if curve.is_limit else "-",
            marker="." if len(points) <= 30 and not curve.is_limit else None,
            label=curve.label or name.partition("/")[2],
        )
        smallest = min([smallest, *values])
    if panel.logarithmic and math.isfinite(smallest):
        axes.set_yscale("log")
    if panel is LAZY:
        for limit in (LAZY_BELOW, RICH_ABOVE):
            axes.axhline(limit, color="0.6", linestyle=":", linewidth=1.0)
    name_axes(axes, "optimizer step", "", panel.title)
    if len(curves) > 1:
        axes.legend(fontsize=7 if len(curves) <= _MOST_NAMED else 5)
