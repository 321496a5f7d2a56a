"""Plot a kernel as a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .._checks import value_error
from ._axes import Array, array, axes_for

_MOST_LINES = 24  # with more class boundaries, the lines would hide the kernel


def plot_kernel(
    kernel: Any,
    labels: Any = None,
    *,
    sort: bool = True,
    title: str = "",
    colorbar: bool = True,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Plot a kernel as a heat map.

    Kernels with entries of both signs get a diverging color scale around 0, others a sequential
    one. Entries that are not finite are drawn grey.

    Args:
        kernel: A kernel `[N, M]`; or `[N, N, O, O]`, of which the mean over equal outputs is shown.
        labels: Class labels `[N]` of a square kernel. Classes are separated by lines and named on
            the axes.
        sort: Whether to sort samples by their class; without `labels` the order is kept.
        title: The title of the axes.
        colorbar: Whether to draw a color bar.
        ax: The axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape is wrong, or no entry is finite.

    Example:
        >>> import torch
        >>> from torch_ntk.plotting import plot_kernel
        >>> figure, axes = plot_kernel(torch.eye(4), torch.tensor([1, 0, 1, 0]))
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['0', '1']
    """
    values = array("kernel", kernel, (2, 4))
    if values.ndim == 4:
        values = values.diagonal(axis1=2, axis2=3).mean(-1)
    finite = np.isfinite(values)
    if not finite.any():
        raise value_error(
            "kernel", "finite somewhere", "only NaN and infinities", "Nothing to show."
        )
    classes = None if labels is None else _classes(labels, values.shape)
    if classes is not None and sort:
        order = np.argsort(classes, kind="stable")
        values, classes = values[np.ix_(order, order)], classes[order]
    figure, axes = axes_for(ax, 5.4, 4.6)
    shown = np.ma.masked_invalid(values)
    low, high = float(shown.min()), float(shown.max())
    signed = low < 0 and -low > 0.02 * high
    top = max(abs(low), abs(high))
    cmap = colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad="0.7")
    image = axes.imshow(
        shown,
        cmap=cmap,
        vmin=-top if signed else low,
        vmax=top if signed else high,
        interpolation="nearest",
    )
    if colorbar:
        figure.colorbar(image, ax=axes, label="kernel Θ(x, x′)", shrink=0.9)
    text = title
    if not finite.all():
        text = f"{title}\nnot finite (grey): {int((~finite).sum())}".strip()
    axes.set_title(text, fontsize=10)
    if classes is None:
        axes.set_xlabel("sample x′")
        axes.set_ylabel("sample x")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        return figure, axes
    axes.set_xlabel("class of x′")
    axes.set_ylabel("class of x")
    _name_classes(axes, classes, "0.3" if signed else "white")
    return figure, axes


def _classes(labels: Any, shape: tuple[int, ...]) -> Array:
    found = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if found.shape != shape[:1] or shape[0] != shape[1]:
        raise value_error(
            "labels",
            f"one label for each row of a square kernel, here of shape {shape}",
            f"shape {found.shape}",
        )
    return found


def _name_classes(axes: Axes, classes: Array, line_color: str) -> None:
    """Draw lines between runs of one class, and the classes' names where there is room."""
    edges = np.flatnonzero(classes[1:] != classes[:-1]) + 1
    bounds = np.concatenate([[0], edges, [len(classes)]])
    if len(edges) <= _MOST_LINES:
        for edge in edges:
            axes.axhline(edge - 0.5, color=line_color, linewidth=0.6)
            axes.axvline(edge - 0.5, color=line_color, linewidth=0.6)
    middles = (bounds[:-1] + bounds[1:] - 1) / 2
    shown: list[int] = []
    for k in np.argsort(-np.diff(bounds), kind="stable"):  # from the longest run to the shortest
        if all(abs(middles[k] - middles[j]) >= len(classes) / 20 for j in shown):
            shown.append(int(k))
    shown.sort()
    names = [str(classes[bounds[k]]) for k in shown]
    axes.set_xticks(middles[shown], names)
    axes.set_yticks(middles[shown], names)
