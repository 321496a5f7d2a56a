"""Figures of one measurement of a training: the kernel, its spectrum and the linearization."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..._checks import value_error
from ...plotting import plot_kernel
from ...plotting._axes import axes_for, name_axes
from ..measure._observation import Observation, spread
from ..measure._record import Record

_MOST_LINES = 12
_MOST_POINTS = 4000
_FEW = 16  # up to this number of eigenvalues, each has a marker


def figures_of(record: Record, seen: Observation) -> Iterator[tuple[str, Figure]]:
    """The figures that belong to the metrics of a measurement, as pairs of name and figure."""
    title = f"step {seen.step}"
    if (
        seen.kernel is not None
        and record.reference is not None
        and {"drift", "alignment"} & set(record.metrics)
    ):
        yield "kernel", kernel_heatmap(seen.kernel, record.reference.probe.y, title=title)[0]
    if seen.eigenvalues is not None:
        yield "spectrum", spectrum_plot(record.spectra, title=title)[0]
    if seen.outputs is not None and seen.linearized is not None:
        yield "linearization", linearization_scatter(seen.outputs, seen.linearized, title=title)[0]


def kernel_heatmap(
    kernel: Tensor, labels: Tensor | None = None, *, title: str = ""
) -> tuple[Figure, Axes]:
    """A heat map of the kernel on a probe, drawn by `torch_ntk.plotting.plot_kernel`.

    Samples are ordered by class. Targets that are not one integer class for each sample are
    ignored.

    Args:
        kernel: The kernel `[N, N]`; or the full kernel `[N, N, O, O]`, of which the mean of Θ_oo
            over the outputs o is shown.
        labels: The targets of the probe, or None.
        title: A title above the map.

    Raises:
        ValueError: `kernel` is not square, or has no finite entry.
    """
    if kernel.ndim not in (2, 4) or kernel.shape[0] != kernel.shape[1]:
        raise value_error("kernel", "[N, N] or [N, N, O, O]", kernel, "")
    is_class = (
        labels is not None
        and labels.shape == kernel.shape[:1]
        and not labels.is_floating_point()
        and not labels.is_complex()
    )
    return plot_kernel(kernel, labels if is_class else None, title=title)


def spectrum_plot(
    spectra: Sequence[tuple[int, Tensor]], *, floor: float = 0.0, title: str = ""
) -> tuple[Figure, Axes]:
    """Eigenvalues on a logarithmic axis as a function of their rank, with one line for each step.

    Args:
        spectra: Pairs `(step, eigenvalues)` in the order of steps, with eigenvalues `[N]` in
            ascending order. At most twelve are drawn.
        floor: The size below which eigenvalues are rounding error. It is drawn as a line if it is
            positive.
        title: A title above the axes.

    Raises:
        ValueError: `spectra` is empty.
    """
    if not spectra:
        raise value_error("spectra", "at least one spectrum", "none", "")
    figure, axes = axes_for(None, 5.6, 4.6)
    chosen = spread(spectra, _MOST_LINES)
    steps = [step for step, _ in chosen]
    scale = Normalize(math.log1p(steps[0]), max(math.log1p(steps[-1]), math.log1p(steps[0]) + 1e-9))
    cmap = colormaps["viridis"]
    smallest = math.inf
    for step, eigenvalues in chosen:
        values = eigenvalues.detach().cpu().double().flip(0).numpy()
        shown = np.where(values > 0, values, np.nan)  # others are not defined on a logarithmic axis
        if np.isfinite(shown).any():
            smallest = min(smallest, float(np.nanmin(shown)))
        is_first, is_last = step == steps[0], step == steps[-1]
        axes.plot(
            np.arange(1, len(values) + 1),
            shown,
            color=cmap(scale(math.log1p(step)) * 0.92),
            linewidth=2.0 if is_last else 1.2,
            # The first line is on top, as later ones would hide it if the training is lazy.
            linestyle="--" if is_first and not is_last else "-",
            zorder=3 if is_first else 2,
            marker="." if len(values) <= _FEW else None,
            label=f"step {step}" if is_first or is_last else None,
        )
    if math.isfinite(smallest):
        axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "no positive eigenvalue", ha="center", transform=axes.transAxes)
    axes.set_xlim(0, max(len(eigenvalues) for _, eigenvalues in chosen) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if floor > 0:
        axes.axhline(floor, color="0.5", linestyle=":", label="noise floor")
    axes.set_xlabel("rank k")
    axes.set_ylabel("eigenvalue λ_k of Θ")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, loc="upper right")
    axes.set_title(title, fontsize=10)
    if len(chosen) > 2:
        bar = figure.colorbar(ScalarMappable(scale, cmap), ax=axes, shrink=0.9, label="step")
        ticks = spread(steps, 5)
        bar.set_ticks([math.log1p(s) for s in ticks], labels=[str(s) for s in ticks])
    return figure, axes


def linearization_scatter(
    outputs: Tensor, linearized: Tensor, *, title: str = ""
) -> tuple[Figure, Axes]:
    """The outputs of the network as a function of those of its linearization, as a scatter plot.

    If the training is lazy, all points are on the diagonal.

    Args:
        outputs: The outputs f_t `[N, O]`.
        linearized: The outputs f_t^lin `[N, O]` of the linearization.
        title: A title above the axes.

    Raises:
        ValueError: The shapes differ.
    """
    if outputs.shape != linearized.shape:
        raise value_error("linearized", f"of shape {tuple(outputs.shape)}", linearized, "")
    figure, axes = axes_for(None, 4.8, 4.6)
    f = outputs.detach().cpu().double().numpy().reshape(outputs.shape[0], -1)
    g = linearized.detach().cpu().double().numpy().reshape(f.shape)
    column = np.broadcast_to(np.arange(f.shape[1]), f.shape)
    stride = max(1, f.size // _MOST_POINTS)
    low, high = float(min(f.min(), g.min())), float(max(f.max(), g.max()))
    margin = 0.05 * (high - low) or 1.0
    ends = [low - margin, high + margin]
    axes.plot(ends, ends, color="0.6", linewidth=1.0, zorder=1)
    colors: dict[str, Any] = {}
    if f.shape[1] > 1:  # one color for each output
        colors = {
            "c": column.ravel()[::stride],
            "cmap": "tab10" if f.shape[1] <= 10 else "viridis",
            "vmin": -0.5,
            "vmax": max(f.shape[1], 10) - 0.5,
        }
    axes.scatter(
        g.ravel()[::stride],
        f.ravel()[::stride],
        s=9,
        alpha=0.7,
        linewidths=0,
        zorder=2,
        **colors,
    )
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    name_axes(axes, "linearized network", "network", title)
    return figure, axes
