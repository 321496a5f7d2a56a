"""The curves of a run in one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .._checks import value_error
from ._verdict import LAZY_BELOW

_WORDS = {
    "drift": "kernel drift",
    "linearization_gap": "linearization gap",
    "val_drift": "kernel drift, validation",
    "val_linearization_gap": "linearization gap, validation",
    "param_drift": "parameters",
    "buffer_drift": "running statistics",
    "lambda_max": "λ_max",
    "lambda_min": "λ_min",
    "noise_floor": "noise floor",
    "stability": "lr · λ_max of the loss",
    "stability_limit": "limit",
    "effective_rank": "effective rank",
    "numerical_rank": "numerical rank",
    "alignment": "training probe",
    "val_alignment": "validation probe",
}
_PANELS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("is it lazy?", ("drift", "linearization_gap", "val_drift", "val_linearization_gap"), False),
    ("relative movement", ("param_drift", "buffer_drift"), False),
    ("alignment with the targets", ("alignment", "val_alignment"), False),
    ("eigenvalues", ("lambda_max", "lambda_min", "noise_floor"), True),
    ("rank", ("effective_rank", "numerical_rank"), False),
    ("speed of the kernel per step", ("velocity",), True),
    ("step size against curvature", ("stability", "stability_limit"), False),
    ("drift of each module", ("module_drift/",), False),
    ("distance to the infinite network", ("infinite_gap",), False),
)
"""Title, curves, and whether the axis is logarithmic."""
_MOST_NAMED = 8
_COLUMNS = 3
_FAR = 1e-3


def history_plot(
    rows: Sequence[Mapping[str, float]], *, title: str = ""
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """Everything that was measured against the optimizer step.

    Args:
        rows: `"step"` and metrics by name, one mapping for each measurement.
        title: A line above the panels, such as the verdict.

    Returns:
        The figure and its axes, `[panels]`, one for each group of curves that has a value.

    Raises:
        ValueError: Nothing was measured.
    """
    # The noise floor comes after the eigenvalues whose floor it is.
    names = sorted({n: None for row in rows for n in row}, key=lambda n: n == "noise_floor")
    panels = [(t, [n for n in names if _belongs(n, curves)], log) for t, curves, log in _PANELS]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise value_error("history", "of at least one measurement", "an empty one")
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.9 * columns, 2.8 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (heading, found, log) in zip(grid, panels, strict=False):
        _draw(axes, rows, found, heading, log)
    for axes in grid[len(panels) :]:
        axes.remove()
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, grid[: len(panels)]


def _belongs(name: str, curves: tuple[str, ...]) -> bool:
    return name in curves or any(c.endswith("/") and name.startswith(c) for c in curves)


def _draw(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    names: Sequence[str],
    heading: str,
    logarithmic: bool,
) -> None:
    smallest = math.inf
    for name in names:
        points = [
            (row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))
        ]
        if logarithmic:  # such an axis has no room for 0
            points = [(step, value) for step, value in points if value > 0.0]
        steps = [step for step, _ in points]
        values = [value for _, value in points]
        if name == "noise_floor" and values and max(values) < _FAR * smallest:
            continue  # it would only press the eigenvalues together
        is_reference = name in ("stability_limit", "noise_floor")
        axes.plot(
            steps,
            values,
            color="0.5" if is_reference else None,
            linestyle=":" if is_reference else "-",
            marker="." if len(points) <= 30 and not is_reference else None,
            label=_WORDS.get(name, name.partition("/")[2] or name),
        )
        smallest = min([smallest, *values])
    if logarithmic and math.isfinite(smallest):
        axes.set_yscale("log")
    if "drift" in names or "linearization_gap" in names:
        axes.axhline(LAZY_BELOW, color="0.6", linestyle=":", linewidth=1.0)
    axes.set_title(heading, fontsize=10)
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.25)
    if len(names) > 1:
        axes.legend(fontsize=7 if len(names) <= _MOST_NAMED else 5)
