"""The page on figures: its code runs in order and draws what its pictures show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from doc_pages import DOCS, code_of, text_of
from matplotlib.figure import Figure

PAGE = text_of("docs/plotting.md")
SECTIONS = re.split(r"^## ", PAGE, flags=re.M)
MOST_BYTES = 150_000


def code(section: str) -> str:
    (found,) = code_of(section)
    return found


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    """Section to figure; the sections share their names, as a reader would type them."""
    names: dict[str, Any] = {}
    found = {}
    for section in SECTIONS:
        exec(compile(code(section), "plotting.md", "exec"), names)
        if "figure" in names:
            found[section.split("`")[1]] = names["figure"]
    return found


def pictures() -> Iterator[str]:
    return (name for section in SECTIONS[1:] for name in re.findall(r"\]\((.+?)\)", section))


def test_each_function_has_its_own_section(figures: dict[str, Figure]) -> None:
    from torch_ntk import plotting

    assert set(figures) == {name for name in plotting.__all__ if name.startswith("plot_")}
    assert len(set(map(id, figures.values()))) == 6
    assert PAGE.count("```python") == len(SECTIONS)


def test_pictures_are_there_and_small() -> None:
    names = list(pictures())
    assert len(names) == 7
    for name in names:
        data = (DOCS / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < MOST_BYTES


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("plot_kernel", []),
        ("plot_spectrum", ["width 512", "width 16", "infinite width", "linear"]),
        ("plot_density", ["width 512, σ = 3", "width 16, σ = 3"]),
        ("plot_trajectories", ["an unseen", "mean ± 2 standard deviations"]),
        ("plot_forecast", ["trained network", "predicted from Θ_0", "modes"]),
        ("plot_coordinates", ["0: ", "2: ", "output: "]),
    ],
)
def test_the_legend_says_what_is_there(
    figures: dict[str, Figure], name: str, texts: list[str]
) -> None:
    axes = figures[name].axes[0]
    legend = axes.get_legend()
    shown = "\n".join(text.get_text() for text in legend.get_texts()) if legend else ""
    assert all(text in shown for text in texts), shown


def test_the_forecast_holds_for_the_wide_network(figures: dict[str, Figure]) -> None:
    """What the page claims: predicted and real loss stay within a quarter of each other."""
    curves = {line.get_label(): line.get_ydata() for line in figures["plot_forecast"].axes[0].lines}
    real, predicted = (
        next(v for k, v in curves.items() if str(k).startswith(start))
        for start in ("trained", "predicted")
    )
    assert len(real) == 61
    assert abs(float(real[0]) / float(predicted[0]) - 1) < 1e-6
    assert abs(float(real[-1]) / float(predicted[-1]) - 1) < 0.25


def test_the_blocks_of_the_kernel_are_brighter(figures: dict[str, Figure]) -> None:
    axes = figures["plot_kernel"].axes[0]
    values = axes.images[0].get_array()
    edges = sorted({round(float(line.get_ydata()[0]) + 0.5) for line in axes.lines[::2]})
    bounds = [0, *edges, 200]
    assert len(bounds) == 5
    inside = sum(float(values[a:b, a:b].sum()) for a, b in itertools.pairwise(bounds))
    size = sum((b - a) ** 2 for a, b in itertools.pairwise(bounds))
    outside = (float(values.sum()) - inside) / (200**2 - size)
    assert inside / size > 1.2 * outside
