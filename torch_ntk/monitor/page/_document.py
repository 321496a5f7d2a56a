"""The document of a training: everything that its page shows, as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..measure._metric import VALIDATION
from ..measure._metrics import MEANINGS, PANELS, curve_of
from ..measure._observation import spread
from ..measure._record import Record
from ..measure._verdict import LAZY_BELOW, RICH_ABOVE, TURNED_ABOVE, Verdict
from ._pictures import Pictures, classes_of, samples_shown

VERSION = 1
"""The version of the document's form, which is increased if an older page cannot read it."""

_MOST_STEPS = 1000
_MOST_SPECTRA = 100
_MOST_EIGENVALUES = 64
_LEVELS = 999  # entries of a kernel are rounded to multiples of the largest one over this number
_MODULES = "module_drift/"


def document(
    record: Record, pictures: Pictures, verdict: Verdict, *, prefix: str, name: str
) -> dict[str, Any]:
    """The document of a training.

    Args:
        record: The record with everything that was measured.
        pictures: The kernels and the linearization that were stored for the page.
        verdict: The verdict on the training.
        prefix: The first part of the logged names.
        name: The name of the run.

    Returns:
        Dictionaries, lists, strings, finite numbers and None, which represents numbers that are not
        finite or were not measured. The keys are:

        - `version`, `name`, `prefix`, `step` (the last one that was measured), `samples` (the
          number of samples in the probe);
        - `verdict`, with `regime`, `reason`, `meaning` and `limits`;
        - `steps`, the steps of the measurements;
        - `curves`, a list with `name`, `label`, `panel`, `meaning`, `is_limit`, `thresholds` (a
          list with `value` and `says`) and `values` (one for each step) of each curve;
        - `panels`, a list with `title` and `logarithmic` of each chart;
        - `modules`, with `names`, and `values` `[modules]` of their drift at the last step that
          has them;
        - `spectra`, with the `ranks` of the eigenvalues that are stored, and for each step `step`
          and `eigenvalues`, the largest first;
        - `maps`, with `classes` `[n]` or None, and for each step `step`, `unit` and `entries`, the
          upper triangle of the kernel by rows, as multiples of the unit;
        - `linearization`, with `step`, `outputs` (the number of outputs of each sample), and lists
          with `network`, `linearized`, `output` (its index) and `own` of each point. The last says
          whether the output is that of the sample's class. It is None if there are no classes.
    """
    rows = spread(record.history, _MOST_STEPS)
    reference = record.reference
    return {
        "version": VERSION,
        "name": name,
        "prefix": prefix,
        "step": int(rows[-1]["step"]) if rows else None,
        "samples": None if reference is None else len(reference.probe),
        "verdict": asdict(verdict),
        "steps": [int(row["step"]) for row in rows],
        "curves": _curves(rows),
        "panels": [{"title": p.title, "logarithmic": p.logarithmic} for p in PANELS],
        "modules": _modules(rows),
        "spectra": _spectra(record),
        "maps": _maps(record, pictures),
        "linearization": _linearization(record, pictures),
    }


def _curves(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The entry `curves` of the document."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = []
    for name in names:
        curve = curve_of(name)
        if curve is None or name.startswith(_MODULES):
            continue
        found.append(
            {
                "name": name,
                "label": curve.label or name.partition("/")[2],
                "panel": curve.panel.title,
                "meaning": MEANINGS.get(name.removeprefix(VALIDATION), ""),
                "is_limit": curve.is_limit,
                "thresholds": _thresholds(name, is_turned_known="kernel_distance" in names),
                "values": [_number(row.get(name, math.nan)) for row in rows],
            }
        )
    return found


def _thresholds(name: str, is_turned_known: bool) -> list[dict[str, Any]]:
    """The values of a metric at which the verdict changes.

    If `kernel_distance` is known, a large drift alone does not make it "feature learning".
    """
    lazy = {"value": LAZY_BELOW, "says": "lazy below"}
    rich = {"value": RICH_ABOVE, "says": "feature learning above"}
    return {
        "drift": [lazy] if is_turned_known else [lazy, rich],
        "kernel_distance": [{"value": TURNED_ABOVE, "says": "feature learning above"}],
        "linearization_gap": [lazy, rich],
    }.get(name, [])


def _modules(rows: list[dict[str, float]]) -> dict[str, Any] | None:
    """The entry `modules` of the document."""
    for row in reversed(rows):
        parts = {n.removeprefix(_MODULES): v for n, v in row.items() if n.startswith(_MODULES)}
        if parts:
            values = [_number(value) for value in parts.values()]
            return {"step": int(row["step"]), "names": list(parts), "values": values}
    return None


def _spectra(record: Record) -> dict[str, Any] | None:
    """The entry `spectra` of the document."""
    if not record.spectra:
        return None
    count = min(len(values) for _, values in record.spectra)
    ranks = spread(range(count), _MOST_EIGENVALUES)
    return {
        "ranks": [rank + 1 for rank in ranks],
        "steps": [
            {"step": step, "eigenvalues": [_number(v) for v in values.flip(0)[ranks].tolist()]}
            for step, values in spread(record.spectra, _MOST_SPECTRA)
        ],
    }


def _maps(record: Record, pictures: Pictures) -> dict[str, Any] | None:
    """The entry `maps` of the document."""
    if record.reference is None or not pictures.maps:
        return None
    classes = classes_of(record.reference)
    steps = []
    for step, kernel in pictures.maps:
        upper = torch.triu_indices(*kernel.shape)
        entries = kernel[upper[0], upper[1]].double()
        known = entries.isfinite()
        unit = float(entries[known].abs().max()) / _LEVELS if bool(known.any()) else 0.0
        levels = (entries / (unit or 1.0)).nan_to_num(0.0, 0.0, 0.0).round().int().tolist()
        if not bool(known.all()):
            levels = [v if is_known else None for v, is_known in zip(levels, known, strict=True)]
        steps.append({"step": step, "unit": _number(unit), "entries": levels})
    return {
        "classes": None if classes is None else classes[samples_shown(record.reference)].tolist(),
        "steps": steps,
    }


def _linearization(record: Record, pictures: Pictures) -> dict[str, Any] | None:
    """The entry `linearization` of the document."""
    points = pictures.points
    if record.reference is None or points is None:
        return None
    classes, own = classes_of(record.reference), None
    output = points.place % points.outputs
    if classes is not None and points.outputs > 1:
        own = (classes[points.place // points.outputs] == output).tolist()
    return {
        "step": points.step,
        "outputs": points.outputs,
        "network": [_number(v) for v in points.network.tolist()],
        "linearized": [_number(v) for v in points.linearized.tolist()],
        "output": output.tolist(),
        "own": own,
    }


def _number(value: float) -> float | None:
    """The number rounded to five digits; None if it is not finite, as JSON has no such numbers."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def is_document(value: object) -> bool:
    """Whether `value` is a document of this version, which the page can show."""
    return isinstance(value, Mapping) and value.get("version") == VERSION
