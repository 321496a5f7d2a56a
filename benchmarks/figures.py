"""The figure of growth that the benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"ours": "#0072B2", "peer": "#D55E00"}


def growth_figure(
    growth: Mapping[str, Sequence[Mapping[str, Any]]],
    axes: Mapping[str, tuple[str, str]],
    peer: str,
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Times of this package and a peer against one size in each panel, doubly logarithmic.

    Args:
        growth: For each size its points: the size under its name, and milliseconds under "ours"
            and "peer" (None where there is none).
        axes: For each size the labels of the horizontal and of the vertical axis.
        peer: The peer's name.
        ticks: Milliseconds marked on a vertical axis that all panels share; None gives each panel
            an axis of its own.
    """
    names = {"ours": "torch_ntk", "peer": peer}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=ticks is not None)
    for panel, (size, (label, unit)) in zip(panels, axes.items(), strict=True):
        points = growth[size]
        for who, colour in COLOURS.items():
            line = [(p[size], p[who]) for p in points if p[who] is not None]
            if line:
                panel.loglog(*zip(*line, strict=True), "o-", color=colour, label=names[who])
        sizes = [p[size] for p in points]
        panel.set_xticks(sizes, [str(s) for s in sizes])
        if ticks is not None:
            panel.set_yticks(ticks, [str(t) for t in ticks])
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.set_ylabel(unit)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    return figure
