"""What the four figures draw: labels, data, the axes that were passed, what is not finite."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from torch_ntk import mlp_kernels
from torch_ntk.forecasting import forecast_from_kernel
from torch_ntk.plotting import plot_forecast, plot_kernel, plot_spectrum, plot_trajectories

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64)
K = mlp_kernels(X).ntk
T = torch.linspace(0, 2, 5, dtype=torch.float64)


def forecast(**changes: Any) -> SimpleNamespace:
    values = {
        "steps": torch.arange(6),
        "loss": torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        "mode_steps": torch.tensor([1.5, 4.0, 90.0, math.inf]),
        "lr": 0.1,
        "max_lr": 0.4,
        "stable": True,
    }
    return SimpleNamespace(**(values | changes))


CALLS: dict[str, Any] = {
    "trajectories": lambda ax=None: plot_trajectories(T, T, T + 1, labels=["a"], ax=ax),
    "spectrum": lambda ax=None: plot_spectrum({"a": K, "b": 2 * K}, ax=ax),
    "kernel": lambda ax=None: plot_kernel(K, [0] * 6 + [1] * 6, ax=ax),
    "forecast": lambda ax=None: plot_forecast(forecast(), forecast().loss, ax=ax),
}
LABELS = {
    "trajectories": ("training time t", "output f_t(x)"),
    "spectrum": ("rank k", "eigenvalue λ_k of Θ"),
    "kernel": ("class of x′", "class of x"),
    "forecast": ("optimizer step", "training loss"),
}


def labelled(axes: Axes, start: str) -> np.ndarray:
    """The heights of the line with this name."""
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(start)]
    return np.asarray(line.get_ydata())


def texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_of_its_own(name: str) -> None:
    before = pyplot.get_fignums(), dict(mpl.rcParams)
    figure, axes = CALLS[name]()
    assert isinstance(figure, Figure)
    assert axes.figure is figure
    assert (axes.get_xlabel(), axes.get_ylabel()) == LABELS[name]
    assert (pyplot.get_fignums(), dict(mpl.rcParams)) == before
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    assert len(np.unique(pixels.view(np.uint32))) > 20  # four bytes are one colour


@pytest.mark.parametrize("name", CALLS)
def test_axes_that_are_passed(name: str) -> None:
    own = Figure(layout="constrained")
    left, right = own.subplots(1, 2)
    figure, axes = CALLS[name](right)
    assert figure is own
    assert axes is right
    assert not left.has_data()
    nested = own.subfigures(1, 1).subplots()
    assert CALLS[name](nested)[0] is own
    own.canvas.draw()


@pytest.mark.parametrize("name", CALLS)
def test_axes_that_are_none(name: str) -> None:
    with pytest.raises(TypeError, match="`ax` must be None or one matplotlib Axes"):
        CALLS[name](np.array([1.0]))
    axes = Figure().subplots()
    axes.remove()
    with pytest.raises(ValueError, match="`ax` must be part of a figure"):
        CALLS[name](axes)


# ---------------------------------------------------------------------- trajectories
def test_bands_and_lines() -> None:
    mean, std = torch.stack([T, -T], 1), torch.stack([T + 1, T + 2], 1)
    _, axes = plot_trajectories(T, mean, std, labels=["up", "down"], width=3.0)
    assert np.array_equal(labelled(axes, "down"), -T)
    band = axes.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-2 - 3 * 4.0, -2 + 3 * 4.0)
    assert texts(axes) == ["up", "down", "mean ± 3 standard deviations"]


def test_the_members_of_an_ensemble() -> None:
    runs = torch.stack([T, 2 * T, 6 * T])
    _, axes = plot_trajectories(T, samples=runs, labels=["mean"])
    assert np.allclose(labelled(axes, "mean"), 3 * T)
    drawn = [np.asarray(line.get_ydata()) for line in axes.lines]
    assert all(any(np.allclose(run, line) for line in drawn) for run in runs.numpy())
    band = axes.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), 2 * (3 + 2 * math.sqrt(7)))  # std 2.646 of 1, 2, 6


def test_one_member_has_no_band() -> None:
    _, axes = plot_trajectories(T, samples=T[None])
    assert len(axes.collections) == 0
    assert axes.get_legend() is None


def test_what_is_not_finite_breaks_the_line() -> None:
    mean, times = T.clone(), T.clone()
    mean[1], times[4] = torch.nan, torch.inf
    figure, axes = plot_trajectories(times, mean, T, labels=["a"])
    assert np.array_equal(labelled(axes, "a"), [0.0, np.nan, 1.0, 1.5], equal_nan=True)
    figure.canvas.draw()


def test_logarithmic_time_leaves_out_zero() -> None:
    _, axes = plot_trajectories(T, T, log_time=True, labels=["a"])
    assert axes.get_xscale() == "log"
    assert np.array_equal(labelled(axes, "a"), T[1:])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((T,), {}, ValueError, "`mean` must be given where there are no samples"),
        ((T, T[:3]), {}, ValueError, "`mean` must be of 5 times in dimension 0"),
        ((T, T), {"samples": T}, ValueError, "`samples` must be non-empty with 2 or 3 dim"),
        ((T, T, T.expand(2, 5).T), {}, ValueError, "`std` must be of 1 lines as mean"),
        ((T, T), {"labels": ["a", "b"]}, ValueError, "`labels` must be 1 names"),
        ((T, T), {"width": -1.0}, ValueError, "`width` must be a finite number"),
        ((T, "no"), {}, TypeError, "`mean` must be a tensor or an array of numbers"),
        ((T * 0, T), {"log_time": True}, ValueError, "`times` must be finite and positive"),
        ((None, T), {}, TypeError, "`times` must be a tensor"),
    ],
)
def test_bad_trajectories(
    arguments: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        plot_trajectories(*arguments, **options)


# ---------------------------------------------------------------------- forecast
def test_predicted_and_real() -> None:
    real = forecast().loss * 1.1
    _, axes = plot_forecast(forecast(), (torch.arange(6), real))
    assert np.allclose(labelled(axes, "predicted"), forecast().loss)
    assert np.allclose(labelled(axes, "trained"), real)
    assert axes.get_yscale() == "log"
    assert axes.get_title() == "lr 0.1, largest stable 0.4"
    marks = [line for line in axes.lines if line.get_marker() == "|"]
    assert np.array_equal(marks[0].get_xdata(), [1.5, 4.0])
    assert any("2 of 4 modes" in text for text in texts(axes))


def test_a_real_forecast() -> None:
    y = X[:, :1]
    predicted = forecast_from_kernel(K, torch.zeros_like(y), y, lr=0.1, steps=20)
    _, axes = plot_forecast(predicted, modes=False)
    assert np.array_equal(labelled(axes, "predicted"), predicted.loss)
    assert len(axes.lines) == 1


def test_several_forecasts_in_one_figure() -> None:
    axes = Figure().subplots()
    for label in ("narrow", "wide"):
        plot_forecast(forecast(), label=label, modes=False, ax=axes)
    assert texts(axes) == ["narrow: predicted from Θ_0", "wide: predicted from Θ_0"]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 2


def test_divergence_and_zero_loss() -> None:
    loss = torch.tensor([1.0, 8.0, 0.0, -1.0, math.inf, math.nan])
    changed = forecast(loss=loss, stable=False, max_lr=math.inf)
    figure, axes = plot_forecast(changed, log_steps=True)
    assert axes.get_title() == "lr 0.1, largest stable ∞: diverges"
    assert axes.get_xscale() == "log"  # without step 0
    assert np.array_equal(labelled(axes, "pred"), [8.0] + [np.nan] * 4, equal_nan=True)
    figure.canvas.draw()
    figure, axes = plot_forecast(forecast(loss=torch.zeros(6)), title="solved")
    assert (axes.get_yscale(), axes.get_title()) == ("linear", "solved")
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("actual", "error", "text"),
    [
        (torch.ones(4), ValueError, "`actual` must be one loss for each of the 6 steps"),
        ((1, 2, 3), ValueError, r"`actual` must be losses or \(steps, losses\)"),
        ((torch.arange(3), torch.ones(4)), ValueError, "one loss for each of the 3 steps"),
        ("low", TypeError, "`actual` must be a tensor or an array"),
    ],
)
def test_bad_real_losses(actual: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        plot_forecast(forecast(), actual)
