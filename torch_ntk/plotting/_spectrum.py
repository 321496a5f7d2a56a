"""Plot the eigenvalues of kernels against their rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .._checks import check_finite_number, value_error
from ..metrics import spectral_summary
from ._axes import Array, array, axes_for, legend, name_axes, style

_FEW = 24  # up to so many eigenvalues are drawn with markers


def plot_spectrum(
    kernels: Any, *, floor: float | None = None, title: str = "", ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Plot the eigenvalues of one or several kernels, largest first, on a logarithmic axis.

    Eigenvalues up to the noise floor, D·ε·max|λ| (see `torch_ntk.metrics.spectral_summary`), are
    drawn with hollow markers, because they cannot be distinguished from 0. Eigenvalues that are not
    positive are marked on the lower edge of the axis, and counted in the legend.

    Args:
        kernels: A kernel `[N, N]`, `[N, N, O]` or `[N, N, O, O]`, eigenvalues `[D]`, or a mapping
            of names to these.
        floor: The noise floor; None computes it for each kernel. For eigenvalues ε is that of
            float64.
        title: The title of the axes.
        ax: The axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        TypeError, ValueError: An argument has the wrong type or shape.

    Example:
        >>> import torch
        >>> from torch_ntk.plotting import plot_spectrum
        >>> figure, axes = plot_spectrum({"identity": torch.eye(3), "half": torch.eye(3) / 2})
        >>> axes.get_yscale()
        'log'
    """
    if floor is not None:
        floor = check_finite_number("floor", floor, minimum=0.0)
    named = kernels if isinstance(kernels, Mapping) else {"": kernels}
    if not named:
        raise value_error("kernels", "at least one kernel", "an empty mapping")
    spectra = {str(name): _spectrum(name, kernel, floor) for name, kernel in named.items()}
    figure, axes = axes_for(ax, 7.0)
    positive = [values[values > 0] for values, _ in spectra.values()]
    lowest = min((float(v.min()) for v in positive if v.size), default=None)
    if lowest is None:
        axes.text(0.5, 0.5, "no positive eigenvalue", ha="center", transform=axes.transAxes)
    else:
        axes.set_yscale("log")
        row = 0  # rows of crosses along the lower edge so far
        for k, (name, (values, noise)) in enumerate(spectra.items()):
            _draw(axes, name, values, noise, k, 0.015 + 0.025 * row)
            row += bool((values <= 0).any())
    axes.set_xlim(0, max(len(values) for values, _ in spectra.values()) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    name_axes(axes, "rank k", "eigenvalue λ_k of Θ", title)
    legend(axes, beside=ax is None)
    return figure, axes


def _spectrum(name: object, kernel: Any, floor: float | None) -> tuple[Array, float]:
    """The finite eigenvalues in descending order, and the noise floor."""
    argument = f"kernels[{name!r}]" if name else "kernels"
    if np.ndim(kernel) == 1:
        found = array(argument, kernel, (1,))
        values = np.sort(found[np.isfinite(found)])[::-1]
        if not values.size:
            raise value_error(argument, "finite somewhere", "only NaN and infinities")
        eps = float(np.finfo(np.float64).eps)
        return values, len(values) * eps * float(abs(values).max()) if floor is None else floor
    array(argument, kernel, (2, 3, 4))
    try:
        summary = spectral_summary(torch.as_tensor(kernel))
    except ValueError as error:
        raise ValueError(f"`{argument}` cannot be drawn. {error}") from error
    values = np.asarray(summary.eigenvalues.cpu().flip(0))
    return values, summary.noise_floor if floor is None else floor


def _draw(axes: Axes, name: str, values: Array, noise: float, k: int, height: float) -> None:
    look = style(k)
    rank = np.arange(1, len(values) + 1)
    sure = values > noise
    marker = "o" if len(values) <= _FEW else None
    axes.plot(
        rank,
        np.where(sure, values, np.nan),
        marker=marker,
        markersize=4,
        label=name or None,
        **look,
    )
    unsure = (values > 0) & ~sure
    if unsure.any():
        axes.plot(
            rank[unsure],
            values[unsure],
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="none",
            color=look["color"],
        )
    if values.min() <= noise:
        axes.axhline(
            noise,
            color=look["color"],
            linewidth=1.0,
            linestyle=":",
            label=f"{name}: noise floor" if name else "noise floor",
        )
    lost = values <= 0
    if lost.any():
        count = int(lost.sum())
        axes.plot(
            rank[lost],
            np.full(count, height),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="x",
            markersize=5,
            color=look["color"],
            label=f"{name}: {count} not positive" if name else f"{count} not positive",
        )
