"""Heat maps and spectra: values, order, signs, what cannot be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from torch_ntk import mlp_kernels
from torch_ntk.plotting import plot_kernel, plot_spectrum

GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64)
K = mlp_kernels(X).ntk


def image(axes: Axes) -> Any:
    return axes.images[0].get_array()


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


# ---------------------------------------------------------------------- heat map
def test_samples_are_sorted_by_class() -> None:
    labels = torch.tensor([2, 0, 1] * 4)
    _, axes = plot_kernel(K, labels)
    order = [1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9]
    assert np.array_equal(image(axes), K[order][:, order])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    assert list(axes.get_yticks()) == [1.5, 5.5, 9.5]
    edges = sorted({float(line.get_ydata()[0]) for line in axes.lines[::2]})
    assert edges == [3.5, 7.5]


def test_the_order_can_be_kept() -> None:
    _, axes = plot_kernel(K, ["b", "b", "a"] * 4, sort=False)
    assert np.array_equal(image(axes), K)
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["b", "a", "b"]


def test_rectangular_and_full_kernels() -> None:
    _, axes = plot_kernel(K[:, :5], colorbar=False, title="two sets")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sample x′", "sample x")
    assert axes.get_title() == "two sets"
    assert len(axes.figure.axes) == 1
    full = torch.einsum("nm,ij->nmij", K, torch.tensor([[1.0, 9.0], [9.0, 3.0]]).double())
    assert np.allclose(image(plot_kernel(full)[1]), 2 * K)


def test_scales() -> None:
    """Around 0 for both signs; from the smallest to the largest for one."""
    positive = plot_kernel(K + 10)[1].images[0]
    assert positive.get_clim() == (float(K.min()) + 10, float(K.max()) + 10)
    signed = plot_kernel(K - 2 * K.max())[1].images[0]
    low, high = signed.get_clim()
    assert low == -high
    assert signed.cmap.name != positive.cmap.name
    figure, _ = plot_kernel(torch.zeros(3, 3))
    figure.canvas.draw()


def test_entries_that_are_not_finite_are_counted() -> None:
    broken = K.clone()
    broken[0, 1], broken[2, 3] = torch.nan, torch.inf
    figure, axes = plot_kernel(broken, title="half done")
    assert axes.get_title() == "half done\nnot finite (grey): 2"
    assert image(axes).mask.sum() == 2
    assert np.isfinite(axes.images[0].get_clim()).all()
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.full((2, 2), torch.nan),), ValueError, "`kernel` must be finite somewhere"),
        ((K[0],), ValueError, "`kernel` must be non-empty with 2 or 4 dimensions"),
        ((K[:0],), ValueError, "`kernel` must be non-empty"),
        ((K, [0, 1]), ValueError, "`labels` must be one label for each row"),
        ((K[:, :5], [0] * 12), ValueError, "`labels` must be one label for each row of a square"),
        (("kernel",), TypeError, "`kernel` must be a tensor or an array"),
    ],
)
def test_bad_kernels(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        plot_kernel(*arguments)


# ---------------------------------------------------------------------- spectrum
def test_eigenvalues() -> None:
    _, axes = plot_spectrum({"one": K, "two": torch.tensor([3.0, 1.0, 2.0])})
    one, two = axes.lines
    assert np.allclose(one.get_ydata(), np.linalg.eigvalsh(K)[::-1], rtol=1e-9)
    assert np.array_equal(two.get_ydata(), [3.0, 2.0, 1.0])
    assert np.array_equal(two.get_xdata(), [1, 2, 3])
    assert axes.get_yscale() == "log"
    assert legend(axes) == ["one", "two"]


def test_full_kernels_have_all_eigenvalues() -> None:
    full = torch.einsum("nm,ij->nmij", K, torch.eye(2, dtype=torch.float64))
    values = np.repeat(np.linalg.eigvalsh(K)[::-1], 2)
    assert np.allclose(plot_spectrum(full)[1].lines[0].get_ydata(), values, rtol=1e-9)


def test_noise_and_what_is_not_positive() -> None:
    values = torch.tensor([4.0, 1.0, 1e-20, 0.0, -1e-20])
    figure, axes = plot_spectrum(values, title="rank 2")
    sure, unsure, floor, lost = axes.lines
    assert np.array_equal(sure.get_ydata(), [4.0, 1.0, *[np.nan] * 3], equal_nan=True)
    assert list(unsure.get_xdata()) == [3]
    assert unsure.get_markerfacecolor() == "none"
    assert floor.get_ydata()[0] == pytest.approx(5 * np.finfo(float).eps * 4, rel=1e-12, abs=0.0)
    assert list(lost.get_xdata()) == [4, 5]
    assert legend(axes) == ["noise floor", "2 not positive"]
    assert axes.get_title() == "rank 2"
    figure.canvas.draw()


def test_a_floor_that_is_given() -> None:
    _, axes = plot_spectrum(torch.tensor([4.0, 1.0, 0.5]), floor=0.75)
    assert np.array_equal(axes.lines[0].get_ydata(), [4.0, 1.0, np.nan], equal_nan=True)


def test_nothing_positive() -> None:
    figure, axes = plot_spectrum(torch.zeros(3))
    assert [text.get_text() for text in axes.texts] == ["no positive eigenvalue"]
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("kernels", "options", "error", "text"),
    [
        ({}, {}, ValueError, "`kernels` must be at least one kernel"),
        (
            {"a": K[:, :2]},
            {},
            ValueError,
            r"`kernels\['a'\]` cannot be drawn. `kernel` must be a k",
        ),
        (torch.triu(K), {}, ValueError, "`kernels` cannot be drawn. `kernel` must be symmetric"),
        (K * torch.nan, {}, ValueError, "`kernels` cannot be drawn. `kernel` must be finite"),
        (K[0] * torch.nan, {}, ValueError, "`kernels` must be finite somewhere"),
        (None, {}, TypeError, "`kernels` must be a tensor or an array"),
        ({"a": "b"}, {}, TypeError, r"`kernels\['a'\]` must be a tensor or an array"),
        (K, {"floor": -1.0}, ValueError, "`floor` must be a finite number, at least 0"),
    ],
)
def test_bad_spectra(
    kernels: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        plot_spectrum(kernels, **options)
