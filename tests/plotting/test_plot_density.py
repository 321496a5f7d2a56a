"""`plot_density` draws the density and two standard errors to either side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from torch_ntk.empirical import SpectralDensity
from torch_ntk.plotting import plot_density


def density(width: float = 0.5) -> SpectralDensity:
    grid = torch.linspace(-1, 3, 9, dtype=torch.float64)
    values = torch.exp(-grid.square())
    return SpectralDensity(grid, values, 0.1 * values, width, grid, values)


def test_lines_and_bands() -> None:
    one = density()
    figure, axes = plot_density({"a": one, "b": density(0.25)}, title="two")
    assert axes.get_title() == "two"
    line, _ = axes.lines
    np.testing.assert_allclose(np.asarray(line.get_ydata()), one.density.numpy())
    band = axes.collections[0]
    assert isinstance(band, PolyCollection)
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.max() == pytest.approx(1.2)  # 1 + 2 · 0.1
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["a, σ = 0.5", "b, σ = 0.25"]
    mine = Figure().subplots()
    assert plot_density(one, ax=mine)[1] is mine
    figure.canvas.draw()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`densities` must be at least one"):
        plot_density({})
    with pytest.raises(TypeError, match=r"`densities\['a'\]` must be a result of NTKOperator"):
        plot_density({"a": torch.eye(3)})  # type: ignore[dict-item]
