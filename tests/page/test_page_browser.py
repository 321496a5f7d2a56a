"""The page in a headless Chromium: it is drawn, the slider moves the map, two runs compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from board import board
from browser import CHROMIUM, Page, browser
from page_runs import watched

from torch_ntk.monitor import write_report
from torch_ntk.tensorboard_plugin import write_document

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
READY = "document.querySelector('.ntk article svg') !== null"
# Where each of the maps is; a map's colours are those of its canvas.
COLOURS = "document.querySelectorAll('canvas')[{}].toDataURL()"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs."""
    runs = [watched(lr).document(name) for lr, name in ((0.2, "slow"), (5.0, "fast"))]
    return write_report(tmp_path_factory.mktemp("pair") / "report.html", runs)


@pytest.mark.parametrize("width", [1280, 800])
def test_two_runs_stand_side_by_side(page: Page, pair: Path, width: int) -> None:
    page.open(pair.as_uri(), READY, width=width, dark=width == 800)
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("[...document.querySelectorAll('select')].map((s) => s.value)") == [
        "slow",
        "fast",
    ]
    places = page.ask(
        "[...document.querySelectorAll('.mapbox')].map((box) => box.getBoundingClientRect())"
        ".map((r) => [r.left, r.right, r.top])"
    )
    (_, left_end, left_top), (right_start, _, right_top) = places
    assert left_end < right_start
    assert left_top == right_top
    # Each of the three first charts has both, and its thresholds.
    (drift, distance, gap) = page.ask(
        "[...document.querySelectorAll('.three')[0].children].map((card) => ["
        "card.querySelectorAll('path.curve').length,"
        "card.querySelectorAll('line.threshold').length])"
    )
    assert (drift, distance, gap) == ([2, 1], [2, 1], [2, 2])
    assert page.problems == []


def test_the_slider_moves_the_map(page: Page, pair: Path) -> None:
    page.open(pair.as_uri(), READY)
    assert page.ask("document.querySelector('output').textContent") == "step 3"
    last = [page.ask(COLOURS.format(k)) for k in (0, 1)]
    for _ in range(3):
        page.press("#map-step", "ArrowLeft", 37)
    page.wait("document.querySelector('output').textContent === 'step 0'")
    first = [page.ask(COLOURS.format(k)) for k in (0, 1)]
    assert first[0] != last[0]
    assert first[1] != last[1]
    page.ask("document.querySelector('#same-scale').click()")
    assert page.ask(COLOURS.format(1)) != first[1]  # its own scale: the kernel has grown
    assert page.problems == []


def test_another_run_is_chosen(page: Page, pair: Path) -> None:
    page.open(pair.as_uri(), READY)
    choose = (
        "(k, name) => { const list = document.querySelector(`#run-${k}`); list.value = name;"
        " list.dispatchEvent(new Event('change')); }"
    )
    page.ask(f"({choose})(1, '')")
    page.wait("document.querySelectorAll('canvas').length === 1")
    slow = page.ask("document.querySelector('.verdict').textContent")
    page.ask(f"({choose})(0, 'fast')")
    page.wait("document.querySelector('#run-0').value === 'fast'")
    page.wait(f"document.querySelector('.verdict').textContent !== {slow!r}")
    assert page.problems == []


def test_what_was_not_measured_is_said(page: Page, tmp_path: Path) -> None:
    path = watched(metrics=("param_drift",)).report(tmp_path / "report.html", "<b>bold</b>")
    page.open(path.as_uri(), "document.querySelector('.ntk article') !== null")
    assert page.ask("document.querySelector('b b')") is None
    said = page.ask("[...document.querySelectorAll('.empty')].map((p) => p.textContent)")
    for name in ("drift", "kernel_distance", "linearization_gap", "lambda_max", "module_drift"):
        assert any(f'"{name}"' in text for text in said), name
    assert page.problems == []


def test_the_tab_of_tensorboard(page: Page, tmp_path: Path) -> None:
    for lr, name in ((0.2, "slow"), (5.0, "fast")):
        write_document(tmp_path / name / "ntk.json", watched(lr).document())
    with board(tmp_path) as address:
        page.open(f"{address}/#ntk", "document.querySelector('iframe') !== null")
        # It is dark whenever TensorBoard is, whatever the system has (here light).
        inner = "document.querySelector('iframe').contentWindow"
        colour = f"({inner}.document.body ? {inner}.getComputedStyle({inner}.document.body) : {{}})"
        colour += ".backgroundColor"
        page.wait(f"{colour} === 'rgb(244, 245, 247)'")
        page.ask("document.body.classList.add('dark-mode')")
        page.wait(f"{colour} === 'rgb(20, 23, 27)'")
        page.ask("document.body.classList.remove('dark-mode')")
        page.wait(f"{colour} === 'rgb(244, 245, 247)'")
        # The frame is TensorBoard's own page: asked for by itself, it is the same one.
        frame = page.ask("document.querySelector('iframe').src")
        page.open(frame, READY)
        names = page.ask("[...document.querySelector('#run-0').options].map((o) => o.value)")
        assert sorted(names) == ["fast", "slow"]
        edge = page.ask("getComputedStyle(document.querySelector('.verdict')).borderLeftWidth")
        assert edge == "5px"  # its style sheet is there
        page.press("#map-step", "ArrowLeft", 37)
        page.wait("document.querySelector('output').textContent === 'step 2'")
        (tmp_path / "slow" / "ntk.json").unlink()
        page.open(frame, READY)
        assert page.ask("document.querySelector('#run-1')") is None
    # TensorBoard has no picture for an empty page of its own.
    assert [text for text in page.problems if "favicon" not in text] == []
