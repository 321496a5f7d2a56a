"""The figures of one measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch_ntk.monitor import (
    Observation,
    Observer,
    kernel_heatmap,
    linearization_scatter,
    spectrum_plot,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(observer: Observer, seen: Observation) -> Iterator[tuple[str, Figure]]:
    """The figures that belong to the measured metrics, each with its name."""
    title = f"step {seen.step}"
    anchor, kernel = observer.anchor, seen.kernel
    outputs, linearized = seen.outputs, seen.linearized
    if kernel is not None and anchor is not None and {"drift", "alignment"} & set(observer.metrics):
        labels = anchor.probe.y
        yield "kernel", kernel_heatmap(kernel, labels, title=title)[0]
    if seen.eigenvalues is not None:
        yield "spectrum", spectrum_plot(observer.spectra, title=title)[0]
    if outputs is not None and linearized is not None:
        yield "linearization", linearization_scatter(outputs, linearized, title=title)[0]
