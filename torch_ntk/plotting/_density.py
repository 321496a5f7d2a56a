"""Plot the density of a kernel's eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._checks import describe, type_error, value_error
from ._axes import array, axes_for, legend, name_axes, style

if TYPE_CHECKING:
    from ..empirical import SpectralDensity

_LOWEST = 1e-6  # the lower end of the axis, relative to the highest density


def plot_density(
    densities: SpectralDensity | Mapping[str, SpectralDensity],
    *,
    title: str = "",
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Plot densities of eigenvalues, as `NTKOperator.spectral_density` returns them.

    The density has a logarithmic axis, because almost all eigenvalues of a kernel are close to 0,
    and each of the few large ones is a peak with 1/D of the height of a Gaussian. The band extends
    by two standard errors to either side.

    Args:
        densities: A density, or a mapping of names to densities.
        title: The title of the axes.
        ax: The axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        TypeError, ValueError: An argument has the wrong type, or there is no density.

    Example:
        >>> import torch
        >>> from torch_ntk import NTKOperator
        >>> from torch_ntk.plotting import plot_density
        >>> theta = NTKOperator(torch.nn.Linear(3, 1), torch.eye(3))
        >>> figure, axes = plot_density(theta.spectral_density())
        >>> axes.get_yscale()
        'log'
    """
    named = densities if isinstance(densities, Mapping) else {"": densities}
    if not named:
        raise value_error("densities", "at least one density", "an empty mapping")
    figure, axes = axes_for(ax)
    highest = 0.0
    for k, (name, found) in enumerate(named.items()):
        for attribute in ("grid", "density", "standard_error", "width"):
            if not hasattr(found, attribute):
                raise type_error(
                    f"densities[{name!r}]" if name else "densities",
                    "a result of NTKOperator.spectral_density()",
                    describe(found),
                )
        grid = array("grid", found.grid, (1,))
        density = array("density", found.density, (1,))
        error = 2 * array("standard_error", found.standard_error, (1,))
        look = style(k)
        label = f"{name}, σ = {found.width:.2g}" if name else f"σ = {found.width:.2g}"
        axes.plot(grid, density, label=label, linewidth=1.2, **look)
        lower = np.maximum(density - error, 0.0)
        axes.fill_between(grid, lower, density + error, color=look["color"], alpha=0.2, linewidth=0)
        highest = max(highest, float(density.max()))
    axes.set_yscale("log")
    axes.set_ylim(_LOWEST * highest, 2 * highest)
    name_axes(axes, "eigenvalue λ of Θ", "density", title)
    legend(axes)
    return figure, axes
