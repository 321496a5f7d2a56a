"""TensorBoard's page of grouped curves: which curves belong into one chart."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch_ntk.monitor import Watch

Layout = dict[str, dict[str, list[object]]]

CHARTS: dict[str, tuple[str, ...]] = {
    "is it lazy? (below 0.1)": ("drift", "linearization_gap", "val_drift", "val_linearization_gap"),
    "loss: as the kernel at the start predicts it, and as it is": ("predicted", "actual"),
    "movement of parameters and buffers": ("param_drift", "buffer_drift"),
    "speed of the kernel per step": ("velocity",),
    "drift of each module": ("module_drift/.*",),
    "step size against curvature": ("stability", "stability_limit"),
    "alignment with the targets": ("alignment", "val_alignment"),
    "eigenvalues": ("lambda_max", "lambda_min", "noise_floor"),
    "condition number": ("condition",),
    "rank": ("effective_rank", "numerical_rank"),
    "distance to the infinite network": ("infinite_gap",),
    "share of the time": ("overhead",),
}
"""Title of each chart and its curves, in the order of the page."""


def layout(watches: Iterable[Watch]) -> Layout:
    """What `SummaryWriter.add_custom_scalars` takes: a section for each prefix.

    Curves are named by regular expressions that match from the start of a name.

    Args:
        watches: Those whose curves go to one logger.
    """
    found: Layout = {}
    for watch in watches:
        section = found.setdefault(watch.prefix, {})
        for title, names in CHARTS.items():
            tags = [_pattern(watch, name) for name in names if _measures(watch, name)]
            if tags:
                kind, before = section.get(title, ["Multiline", []])
                merged = [*before, *tags] if isinstance(before, list) else tags
                section[title] = [kind, merged]
    return found


def _measures(watch: Watch, name: str) -> bool:
    metrics = watch.observer.metrics
    if name.startswith("val_"):
        return watch.validation is not None and name.removeprefix("val_") in metrics
    if name == "overhead" or name in watch.extra:
        return True
    if name == "buffer_drift":
        return "param_drift" in metrics
    return name.removesuffix("/.*").removesuffix("_limit") in metrics


def _pattern(watch: Watch, name: str) -> str:
    stem = name.removesuffix("/.*")
    tail = "/.*" if stem != name else ""
    return f"{re.escape(watch.tag(stem))}{tail}$"
