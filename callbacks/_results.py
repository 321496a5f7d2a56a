"""Logging of measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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

    With `draw`, figures and `document(name of the run)` are made if a logger can show images.
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


def writing(session: Session) -> AbstractContextManager[None]:
    """A context in which any error of a logger is a warning, unless `on_error` is `"raise"`."""
    return session.forgiving(Exception, "A logger of the monitor failed: {}")
