"""What was measured, in the loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from torch_ntk.monitor import Observation, Session, figures_of
from torch_ntk.tensorboard_plugin import document_name, write_document

from . import _loggers


def log_observation(
    trainer: Trainer,
    session: Session,
    seen: Observation,
    *,
    draw: bool,
    document: Callable[[str], Mapping[str, Any]],
) -> None:
    """Log the scalars of a measurement; if `draw`, its figures and the document of the page too.

    Args:
        trainer: Whose loggers take them.
        session: What has measured.
        seen: The measurement.
        draw: Whether it is the turn of figures. Those are drawn if a logger takes any.
        document: Makes the document of a run with this name.
    """
    named = {session.tag(name): value for name, value in seen.scalars.items()}
    _loggers.log_scalars(trainer, named, seen.step)
    if draw and _loggers.takes_figures(trainer):
        with session.drawing():
            for name, figure in figures_of(session.record, seen):
                _loggers.log_figure(trainer, session.tag(name), figure, seen.step)
            file = document_name(session.tag("verdict").removesuffix("verdict"))
            for folder in _loggers.board_folders(trainer):
                write_document(folder / file, document(folder.name))


@contextlib.contextmanager
def writing(session: Session) -> Iterator[None]:
    """Within it, a logger that fails ends the run only if that is what a user expects."""
    try:
        yield
    except Exception as error:  # anything that a logger may raise
        if session.settings.on_error == "raise":
            raise
        session.warn_once(str(error), f"A logger of the monitor failed: {error}")


def is_turn(steps: Sequence[float], every: int | None) -> bool:
    """Whether the last of the measured steps is one for figures.

    Drawing costs more than a small kernel, so that without `every` figures come at the 1st, 2nd,
    4th, 8th, … measurement; with it, at the first one at or after each of its multiples.
    """
    count = len(steps)
    if every is None or count < 2:
        return count & (count - 1) == 0
    return steps[-1] // every > steps[-2] // every
