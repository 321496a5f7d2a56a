"""What was measured, in the loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from lightning.pytorch import Trainer

from torch_ntk.monitor import Observation, Watch

from . import _loggers
from ._drawing import figures


def log_observation(
    trainer: Trainer,
    watch: Watch,
    seen: Observation,
    *,
    draw: bool,
    every: int | None,
    last: bool,
) -> None:
    """Log the scalars of a measurement, and its figures if `draw` and it is their turn.

    Args:
        trainer: Whose loggers are meant.
        watch: What measured.
        seen: The measurement.
        draw: Whether there are figures at all.
        every: Steps between figures, or None.
        last: Whether it is the last measurement, which is drawn in any case.
    """
    named = {watch.tag(name): value for name, value in seen.scalars.items()}
    _loggers.log_scalars(trainer, named, seen.step)
    steps = [int(row["step"]) for row in watch.observer.history]
    if draw and (last or is_turn(steps, every)) and _loggers.takes_figures(trainer):
        for name, figure in figures(watch.observer, seen):
            _loggers.log_figure(trainer, watch.tag(name), figure, seen.step)


@contextlib.contextmanager
def writing(watch: Watch) -> Iterator[None]:
    """Within it, a logger that fails ends the run only if that is what a user expects."""
    try:
        yield
    except Exception as error:  # anything that a logger may raise
        if watch.on_error == "raise":
            raise
        watch.warn_once(str(error), f"A logger of the monitor failed: {error}")


def is_turn(steps: Sequence[int], every: int | None) -> bool:
    """Whether the last of the measured steps is one for figures.

    Drawing costs more than a small kernel, so that without `every` figures come at the 1st, 2nd,
    4th, 8th, … measurement; with it, at the first one at or after each of its multiples.
    """
    count = len(steps)
    if every is None or count < 2:
        return count & (count - 1) == 0
    return steps[-1] // every > steps[-2] // every
