"""Logging of measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from torch_ntk.monitor import Observation
from torch_ntk.monitor.figures import figures_of
from torch_ntk.monitor.loop import Session
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
    """Log the scalars of a measurement, and perhaps figures and the document of the page.

    Args:
        trainer: The Trainer with the loggers.
        session: The session that has measured.
        seen: The measurement.
        draw: Whether figures are drawn and the document is written, if a logger can show images.
        document: A function of the name of the run that makes the document.
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
    """A context in which a logger's error becomes a warning, unless `on_error` is `"raise"`."""
    try:
        yield
    except Exception as error:  # anything that a logger may raise
        if session.settings.on_error == "raise":
            raise
        session.warn_once(str(error), f"A logger of the monitor failed: {error}")


def is_turn(steps: Sequence[float], every: int | None) -> bool:
    """Whether figures are drawn at the last of the measured steps.

    Drawing takes longer than a small kernel. Therefore, without `every`, figures are drawn at the
    1st, 2nd, 4th, 8th, … measurement. Otherwise they are drawn at the first measurement at or after
    each multiple of `every`.

    Args:
        steps: The steps of all measurements so far.
        every: A number of optimizer steps, or None.
    """
    count = len(steps)
    if every is None or count < 2:
        return count & (count - 1) == 0
    return steps[-1] // every > steps[-2] // every
