"""What was measured: as columns, as a verdict, and in the loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lightning.pytorch import Trainer

from torch_ntk.monitor import Observation, Observer, Verdict, verdict

from . import _loggers
from ._drawing import figures


def columns(
    rows: Sequence[Mapping[str, float]], tag: Callable[[str], str]
) -> dict[str, list[float]]:
    """`"step"` and each metric by its logged name; NaN where a row lacks it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = {n: [row.get(n, float("nan")) for row in rows] for n in names}
    return {n if n == "step" else tag(n): column for n, column in found.items()}


def judged(observer: Observer, diverged_at: int | None) -> Verdict:
    """The verdict on the last measurement; at the anchor itself nothing is known yet."""
    rows, anchor = observer.history, observer.anchor
    has_moved = bool(rows) and anchor is not None and rows[-1]["step"] > anchor.step
    return verdict(rows[-1] if has_moved else {}, diverged_at)


def log_observation(
    trainer: Trainer,
    observer: Observer,
    seen: Observation,
    tag: Callable[[str], str],
    *,
    draw: bool,
    last: bool,
) -> None:
    """Log the scalars of a measurement, and its figures if `draw` and it is their turn."""
    named = {tag(name): value for name, value in seen.scalars.items()}
    _loggers.log_scalars(trainer, named, seen.step)
    count = len(observer.history)
    # Drawing costs more than a small kernel: figures come at the 1st, 2nd, 4th, 8th, … point.
    is_turn = last or count & (count - 1) == 0
    if draw and is_turn and _loggers.takes_figures(trainer):
        for name, figure in figures(observer, seen):
            _loggers.log_figure(trainer, tag(name), figure, seen.step)
