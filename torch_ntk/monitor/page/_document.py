"""Everything that a page shows of one training, as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..measure._metric import VALIDATION
from ..measure._metrics import MEANINGS, PANELS, curve_of
from ..measure._record import Record
from ..measure._verdict import LAZY_BELOW, RICH_ABOVE, TURNED_ABOVE, Verdict
from ._pictures import Pictures, classes_of, samples_shown, spread

VERSION = 1
"""Of the document's form; raised when a page of before could not read it."""

_MOST_STEPS = 1000
_MOST_SPECTRA = 100
_MOST_EIGENVALUES = 64
_LEVELS = 999  # of a kernel's entries: three digits of the largest one
_MODULES = "module_drift/"


def document(
    record: Record, pictures: Pictures, verdict: Verdict, *, prefix: str, name: str
) -> dict[str, Any]:
    """The training as one document.

    Args:
        record: What was measured.
        pictures: What was kept of it besides numbers.
        verdict: The judgement of it.
        prefix: Begins the names under which its numbers are logged.
        name: Of the run.

    Returns:
        Dictionaries, lists, strings, finite numbers and None, which stands for what is not finite
        or was not measured. Its keys:

        - `version`, `name`, `prefix`, `step` (the last one measured), `samples` (of the probe);
        - `verdict`: `regime`, `reason`, `meaning`, `limits`;
        - `steps`, and `curves`: for each number `name`, `label`, `panel`, `meaning`, `is_limit`,
          `thresholds` (`value`, `says`) and `values`, one for each step;
        - `panels`: `title` and `logarithmic` of the charts in which curves stand together;
        - `modules`: `names`, and `values` `[modules]` of their drift at the last step that has it;
        - `spectra`: `step` and `eigenvalues`, the largest first, with their `ranks`;
        - `maps`: `classes` `[n]` or None, and `steps`: for each `step`, `unit` and `entries`, the
          upper triangle of the map by rows, as multiples of the unit;
        - `linearization`: `step`, `outputs` (how many each sample has), and of each point
          `network`, `linearized`, `output` (its index) and `own`, whether the sample is of that
          class (None where it has no class).
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
    """Where the verdict changes. Of a kernel that turns, its movement decides on laziness only."""
    lazy = {"value": LAZY_BELOW, "says": "lazy below"}
    rich = {"value": RICH_ABOVE, "says": "feature learning above"}
    return {
        "drift": [lazy] if is_turned_known else [lazy, rich],
        "kernel_distance": [{"value": TURNED_ABOVE, "says": "feature learning above"}],
        "linearization_gap": [lazy, rich],
    }.get(name, [])


def _modules(rows: list[dict[str, float]]) -> dict[str, Any] | None:
    for row in reversed(rows):
        parts = {n.removeprefix(_MODULES): v for n, v in row.items() if n.startswith(_MODULES)}
        if parts:
            values = [_number(value) for value in parts.values()]
            return {"step": int(row["step"]), "names": list(parts), "values": values}
    return None


def _spectra(record: Record) -> dict[str, Any] | None:
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
    """Five digits, which no screen shows more of; JSON has no word for NaN and infinities."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def is_document(value: object) -> bool:
    """Whether this is a document that the page can show."""
    return isinstance(value, Mapping) and value.get("version") == VERSION
