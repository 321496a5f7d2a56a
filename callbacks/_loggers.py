"""Functions that log scalars, figures and text to every kind of logger."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import (
    CometLogger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from ._trainer import local_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ._layout import Layout


_MLFLOW_LONGEST = 250


def log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int) -> None:
    """Log scalars at `step` on every logger, and save them.

    `pl_module.log` would drop values at steps that are no multiples of `log_every_n_steps`.
    """
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger):
            named = {mlflow_name(name): value for name, value in scalars.items()}
        else:
            named = dict(scalars)
        logger.log_metrics(named, step=step)
        logger.save()


def takes_figures(trainer: Trainer) -> bool:
    """Whether any logger of the trainer can show an image."""
    kinds = (TensorBoardLogger, WandbLogger, MLFlowLogger, CometLogger)
    return any(isinstance(logger, kinds) for logger in trainer.loggers)


def log_figure(trainer: Trainer, tag: str, figure: Figure, step: int) -> None:
    """Log a figure at `step` on every logger that can show images.

    The type of the logger decides, since the experiment of a dummy logger has every attribute.
    """
    image: np.ndarray[Any, Any] | None = None
    for logger in trainer.loggers:
        if isinstance(logger, (TensorBoardLogger, WandbLogger)) and image is None:
            image = rendered(figure)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key=tag, images=[image], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(
                logger.run_id, figure, f"{mlflow_name(tag)}/{step:08d}.png"
            )
        elif isinstance(logger, CometLogger):
            logger.experiment.log_figure(tag, figure, step=step)


def log_layout(trainer: Trainer, groups: Layout) -> None:
    """Log the layout of TensorBoard's page "Custom scalars", which `layout` returns."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(groups)


def log_text(trainer: Trainer, tag: str, line: str, text: str, step: int) -> None:
    """Log a text on TensorBoard, and a line on the loggers that have a table of runs.

    TensorBoard shows the text at `step`. Weights & Biases stores the line in the summary of the
    run, and MLflow in its tags, by which their tables of runs can be filtered.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, step)
        elif isinstance(logger, WandbLogger):
            logger.experiment.summary[tag] = line
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.set_tag(logger.run_id, mlflow_name(tag), line)


def board_folders(trainer: Trainer) -> list[Path]:
    """The folders on this machine to which TensorBoard's loggers write this run."""
    boards = (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    return [folder for board in boards if (folder := local_path(board.log_dir)) is not None]


def flush(trainer: Trainer) -> None:
    """Make loggers write what they have buffered, before the process may end."""
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()


def mlflow_name(name: str) -> str:
    """A name that MLflow accepts for a metric, a tag or a folder.

    MLflow accepts letters, digits and a few other characters, at most 250 of them, which must form
    a plain relative path. Names of modules may have any characters. Lightning would remove others
    with a warning, so that `a+` and `a*` become equal. Here each is replaced by its code point, as
    in `a_2b` and `a_2a`.
    """
    coded = re.sub("[^a-zA-Z0-9_/. -]", lambda found: f"_{ord(found[0]):x}", name)
    plain = [re.sub(r"^\.+$", "_", part) for part in coded.split("/") if part]
    short = "/".join(plain) or "_"
    if len(short) <= _MLFLOW_LONGEST:
        return short
    half = (_MLFLOW_LONGEST - 1) // 2
    return f"{short[:half]}_{short[-half:]}"


def rendered(figure: Figure) -> np.ndarray[Any, Any]:
    """The figure as an image `[height, width, 3]` of bytes, drawn once for all loggers."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
