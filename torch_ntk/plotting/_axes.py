"""Axes, colors, legends and conversion to arrays, for all figures."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from .._checks import describe, type_error, value_error

Array: TypeAlias = np.ndarray[Any, Any]

# The palette of Okabe and Ito, whose colors can be distinguished with any kind of color vision,
# without its yellow, which is hard to see as a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
GREY = "0.45"


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, with a canvas of its own instead of pyplot's."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axes_for(ax: Axes | None, width: float = 5.6, height: float = 4.2) -> tuple[Figure, Axes]:
    """The figure of a single `Axes` and it itself, or a new figure and its axes."""
    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    if not isinstance(ax, Axes):
        raise type_error(
            "ax", "None or one matplotlib Axes", describe(ax), "Pass axes[0], for example."
        )
    owner: Figure | SubFigure | None = ax.figure
    while isinstance(owner, SubFigure):
        owner = owner.figure
    if owner is None:
        raise value_error("ax", "part of a figure", "axes that were removed from their figure")
    return owner, ax


def style(k: int) -> dict[str, Any]:
    """The color and dash pattern of the k-th line; the first 28 lines all differ."""
    return {
        "color": COLORS[k % len(COLORS)],
        "linestyle": STYLES[k // len(COLORS) % len(STYLES)],
    }


def array(name: str, value: object, dims: tuple[int, ...]) -> Array:
    """A tensor or array of numbers in float64; its number of dimensions must be in `dims`."""
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    if value is None:
        raise type_error(name, "a tensor or an array of numbers", value)
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise type_error(name, "a tensor or an array of numbers", describe(value)) from error
    if found.ndim not in dims or found.size == 0:
        wanted = " or ".join(map(str, dims))
        raise value_error(name, f"non-empty with {wanted} dimensions", f"shape {found.shape}")
    return found


def name_axes(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    """Set the labels and the title, and draw a grid."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=10)


def legend(axes: Axes, *, beside: bool = False) -> None:
    """Draw a legend if a line has a label; with `beside`, outside of the axes."""
    if not axes.get_legend_handles_labels()[0]:
        return
    if beside:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    else:
        axes.legend(fontsize=8)
