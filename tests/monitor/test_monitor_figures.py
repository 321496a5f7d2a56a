"""What the figures show, read from the drawn objects."""

from __future__ import annotations

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from torch_ntk.monitor import kernel_heatmap, linearization_scatter, spectrum_plot


def kernel(n: int = 6) -> Tensor:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x @ x.T


def drawn(figure: Figure) -> int:
    """Size of the figure as a PNG: drawing it raises what only the renderer finds."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return len(buffer.getvalue())


@pytest.fixture(autouse=True)
def _no_pyplot_figure() -> object:
    before = plt.get_fignums()
    yield
    assert plt.get_fignums() == before


def test_samples_are_ordered_by_class() -> None:
    theta, labels = kernel(), torch.tensor([2, 0, 1, 0, 2, 0])
    figure, axes = kernel_heatmap(theta, labels, title="step 3")
    order = [1, 3, 5, 2, 0, 4]
    shown = np.asarray(axes.images[0].get_array())
    assert np.array_equal(shown, theta[order][:, order].numpy())
    ticks = dict(
        zip(axes.get_xticks(), [t.get_text() for t in axes.get_xticklabels()], strict=True)
    )
    assert ticks == {1.0: "0", 3.0: "1", 4.5: "2"}
    borders = sorted({float(line.get_xdata()[0]) for line in axes.lines} - {0.0, 1.0})
    assert borders == [2.5, 3.5]
    assert axes.get_title() == "step 3"
    assert drawn(figure) > 1000


@pytest.mark.parametrize(
    "labels", [None, torch.rand(6), torch.rand(6, 3), torch.eye(6, dtype=torch.int64)]
)
def test_without_classes_the_order_is_kept(labels: Tensor | None) -> None:
    theta = kernel()
    _, axes = kernel_heatmap(theta, labels)
    assert np.array_equal(np.asarray(axes.images[0].get_array()), theta.numpy())
    assert axes.get_xlabel() == "sample x′"


def test_a_full_kernel_shows_the_mean_over_outputs() -> None:
    full = torch.randn(5, 5, 3, 3, dtype=torch.float64)
    _, axes = kernel_heatmap(full)
    expected = torch.einsum("nmii->nm", full) / 3
    assert np.allclose(np.asarray(axes.images[0].get_array()), expected.numpy(), atol=1e-15)


def test_negative_entries_get_a_scale_around_zero() -> None:
    theta = kernel()
    image = kernel_heatmap(theta)[1].images[0]
    top = float(theta.abs().max())
    assert image.get_clim() == (-top, top)
    image = kernel_heatmap(theta.abs())[1].images[0]
    assert image.get_clim() == (float(theta.abs().min()), top)


def test_labels_of_many_classes_do_not_overlap() -> None:
    labels = torch.arange(60)
    figure, axes = kernel_heatmap(kernel(60), labels)
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes.get_xticklabels()]
    boxes.sort(key=lambda box: box.x0)
    assert len(boxes) > 10
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert len(axes.lines) == 0


@pytest.mark.parametrize("theta", [torch.ones(1, 1), torch.zeros(3, 3), -torch.eye(2)])
def test_kernels_at_the_edge(theta: Tensor) -> None:
    assert drawn(kernel_heatmap(theta, torch.zeros(len(theta), dtype=torch.int64))[0]) > 1000


def test_not_a_kernel() -> None:
    with pytest.raises(ValueError, match=r"`kernel` must be \[N, N\]"):
        kernel_heatmap(torch.ones(2, 3))


def test_spectra_on_a_logarithmic_axis() -> None:
    values = torch.tensor([1e-3, 1.0, 100.0])
    spectra = [(step, values * (1 + step)) for step in range(3)]
    figure, axes = spectrum_plot(spectra, floor=1e-2)
    assert axes.get_yscale() == "log"
    lines = axes.lines[:3]
    for (_, expected), line in zip(spectra, lines, strict=True):
        assert list(line.get_xdata()) == [1, 2, 3]
        assert np.allclose(line.get_ydata(), expected.flip(0).numpy())
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels == ["step 0", "step 2", "noise floor"]
    assert drawn(figure) > 1000


def test_noise_below_zero_is_left_out() -> None:
    figure, axes = spectrum_plot([(0, torch.tensor([-1e-9, 0.0, 2.0]))])
    shown = np.asarray(axes.lines[0].get_ydata())
    assert shown[0] == 2.0
    assert np.isnan(shown[1:]).all()
    assert drawn(figure) > 1000


def test_a_long_history_is_thinned_between_its_ends() -> None:
    spectra = [(step, torch.tensor([1.0, 2.0])) for step in range(0, 500, 5)]
    figure, axes = spectrum_plot(spectra)
    assert len(axes.lines) == 12
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert texts == ["step 0", "step 495"]
    assert drawn(figure) > 1000


@pytest.mark.parametrize(
    "spectra",
    [
        [(0, torch.zeros(4))],
        [(7, torch.tensor([3.0]))],
        [(0, torch.zeros(4)), (5, torch.ones(4))],
        [(3, torch.ones(2)), (4, torch.ones(2)), (5, torch.ones(2))],
    ],
)
def test_spectra_at_the_edge(spectra: list[tuple[int, Tensor]]) -> None:
    assert drawn(spectrum_plot(spectra)[0]) > 1000


def test_no_spectrum() -> None:
    with pytest.raises(ValueError, match="`spectra`"):
        spectrum_plot([])


@pytest.mark.parametrize("outputs", [1, 3, 30])
def test_scatter_shows_every_pair(outputs: int) -> None:
    f, g = torch.randn(8, outputs), torch.randn(8, outputs)
    figure, axes = linearization_scatter(f, g)
    points = np.asarray(axes.collections[0].get_offsets())
    expected = torch.stack([g.reshape(-1), f.reshape(-1)], 1).double().numpy()
    assert np.array_equal(points, expected)
    assert axes.get_xlim() == axes.get_ylim()
    assert drawn(figure) > 1000


def test_scatter_of_very_many_points_is_thinned() -> None:
    f = torch.randn(100, 1000)
    axes = linearization_scatter(f, f)[1]
    assert 2000 < len(axes.collections[0].get_offsets()) <= 8000


def test_scatter_of_equal_outputs() -> None:
    assert drawn(linearization_scatter(torch.ones(1, 1), torch.ones(1, 1))[0]) > 1000


def test_scatter_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"`linearized` must be of shape \(2, 3\)"):
        linearization_scatter(torch.ones(2, 3), torch.ones(3, 2))
