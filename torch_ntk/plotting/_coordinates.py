"""Plot sizes in networks against their width, with a column for each parameterization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .._checks import check_choice, describe, type_error, value_error
from ._axes import Array, array, new_figure, style

_LABELS = {
    "activation": "size at initialization\n(RMS)",
    "change": "change in training\n(RMS)",
    "movement": "‖W_t - W_0‖ / ‖W_0‖",
    "kernel": "kernel",
}
_MOST = 12  # names in a legend


class SizesLike(Protocol):
    """The size of one module, parameter or kernel in networks of several widths."""

    @property
    def kind(self) -> Any:
        """`"activation"`, `"change"`, `"movement"` or `"kernel"`."""

    @property
    def name(self) -> str:
        """The name of the module, parameter or kernel."""

    @property
    def values(self) -> Any:
        """The sizes `[S, W]`, with a row for each seed."""

    @property
    def slope(self) -> float:
        """The exponent of the width, or NaN."""


class CoordinatesLike(Protocol):
    """The attributes that `plot_coordinates` reads, such as those of a `CoordinateCheck`."""

    @property
    def widths(self) -> Sequence[int]:
        """The widths `[W]`, ascending."""

    @property
    def steps(self) -> int:
        """The number of training steps."""

    @property
    def sizes(self) -> Iterable[SizesLike]:
        """All measured sizes."""


def plot_coordinates(
    checks: CoordinatesLike | Mapping[str, CoordinatesLike],
    *,
    kinds: Sequence[str] | None = None,
    title: str = "",
) -> tuple[Figure, Array]:
    """Plot sizes against the width on logarithmic axes, with the fitted slopes in the legends.

    There is a row of axes for each kind of size, and a column for each check, so that several
    parameterizations can be compared. Lines are geometric means over seeds; bands extend from the
    smallest to the largest value. A horizontal line does not depend on the width. Values that are 0
    or not finite are left out of the line.

    Args:
        checks: A result of `torch_ntk.coordinate_check`, or a mapping of names to such results.
        kinds: Which of `"activation"`, `"change"`, `"movement"`, `"kernel"` to draw; None draws
            those that were measured.
        title: The title of the figure.

    Returns:
        The figure and its axes `[kinds, checks]`.

    Raises:
        TypeError, ValueError: An argument has the wrong type, or sizes of a kind were not measured.

    Example:
        >>> import torch
        >>> from torch_ntk import MLP, coordinate_check
        >>> from torch_ntk.plotting import plot_coordinates
        >>> x = torch.randn(4, 3)
        >>> check = coordinate_check(lambda width: MLP([3, width, 1]), [8, 16, 32], x, steps=1)
        >>> figure, axes = plot_coordinates({"NTK": check}, kinds=["change"])
        >>> axes.shape
        (1, 1)
    """
    named: Mapping[str, CoordinatesLike] = checks if isinstance(checks, Mapping) else {"": checks}
    if not named:
        raise value_error("checks", "at least one check", "an empty mapping")
    for check in named.values():
        if not hasattr(check, "sizes"):
            expected = "a result of coordinate_check, or a mapping of names to such results"
            raise type_error("checks", expected, describe(check))
    shown = _kinds(named, kinds)
    figure = new_figure(1.4 + 4.4 * len(named), 0.5 + 3.0 * len(shown))
    grid = figure.subplots(len(shown), len(named), sharex="col", sharey="row", squeeze=False)
    for kind, row in zip(shown, grid, strict=True):
        for (name, check), axes in zip(named.items(), row, strict=True):
            _draw(axes, check, kind)
            if kind == shown[0]:
                axes.set_title(name, fontsize=11)
            if kind == shown[-1]:
                axes.set_xlabel("width")
        after = "" if kind == "activation" else f"\nafter {_steps(named)}"
        row[0].set_ylabel(f"{_LABELS[kind]}{after}")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure, grid


def _steps(named: Mapping[str, CoordinatesLike]) -> str:
    numbers = sorted({check.steps for check in named.values()})
    return f"{' or '.join(map(str, numbers))} step{'s' * (numbers != [1])}"


def _kinds(named: Mapping[str, CoordinatesLike], kinds: Sequence[str] | None) -> list[str]:
    there = [{str(size.kind) for size in check.sizes} for check in named.values()]
    if kinds is None:
        return [kind for kind in _LABELS if any(kind in own for own in there)]
    if isinstance(kinds, str) or not isinstance(kinds, Sequence) or not kinds:
        raise type_error("kinds", "a sequence of kinds", describe(kinds), "Pass ['change'], say.")
    for kind in kinds:
        check_choice("kinds", kind, tuple(_LABELS))
        if not any(kind in own for own in there):
            remedy = "Measure it: coordinate_check(..., kernel=True)." if kind == "kernel" else ""
            raise value_error("kinds", "kinds that were measured", repr(kind), remedy)
    return list(kinds)


def _draw(axes: Axes, check: CoordinatesLike, kind: str) -> None:
    widths = array("checks.widths", list(check.widths), (1,))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    own = [size for size in check.sizes if size.kind == kind]
    for k, size in enumerate(own):
        values = array("checks.sizes", size.values, (2,))
        values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        slope = "no slope" if math.isnan(size.slope) else f"{size.slope:+.2f}"
        look = style(k)
        axes.plot(
            widths,
            np.exp(np.log(values).mean(0)),
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            label=f"{size.name}: {slope}" if k < _MOST else None,
            **look,
        )
        axes.fill_between(
            widths, values.min(0), values.max(0), color=look["color"], alpha=0.12, linewidth=0
        )
    if len(own) > _MOST:
        axes.plot([], [], linestyle="none", label=f"and {len(own) - _MOST} more")
    axes.xaxis.set_major_locator(FixedLocator(list(widths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{int(width)}" for width in widths])
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7.5, title="slope", title_fontsize=7.5)
