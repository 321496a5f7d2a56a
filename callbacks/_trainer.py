"""Everything that uses private attributes of Lightning, and questions to the Trainer."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from torch_ntk._checks import value_error

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_AVERAGING = (StochasticWeightAveraging, WeightAveraging)
_LOGGING = (
    *("log_metrics", "log_hyperparams", "log_graph", "log_image", "log_text", "log_table"),
    *("log_audio", "log_video"),
)


def steps_taken(trainer: Trainer) -> int:
    """The step at which loggers log: the number of batches after which an optimizer has stepped.

    `trainer.global_step` adds up the steps of all optimizers; loggers do not use it.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def batches_seen(trainer: Trainer) -> int:
    """The number of training batches so far, including those after which no optimizer stepped."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


def length_of(trainer: Trainer) -> int | None:
    """The number of optimizer steps of the whole run, or None if it is not known at its start."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None


def checkpoint_folder(trainer: Trainer) -> Path | None:
    """The folder of this run's checkpoints, or None if it is not on this machine."""
    saver = trainer.checkpoint_callback
    chosen = saver.dirpath if isinstance(saver, ModelCheckpoint) else None
    return local_path(chosen or trainer.default_root_dir)


def resumed_folder(trainer: Trainer) -> Path | None:
    """The folder of the checkpoint from which the run resumes; None if there is none here."""
    path = local_path(trainer.ckpt_path)
    return None if path is None else path.parent


def local_path(path: object) -> Path | None:
    """The absolute path, or None if `path` is not a path on this machine."""
    if not isinstance(path, (str, os.PathLike)) or "://" in str(path):
        return None
    return Path(path).absolute()


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether training ends after the current epoch, as far as is known at the epoch's end."""
    by_steps = trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps
    limit = trainer.max_epochs
    by_epochs = limit is not None and limit >= 0 and trainer.current_epoch + 1 >= limit
    for swa in callbacks_of(
        trainer, StochasticWeightAveraging
    ):  # adds an epoch in which nothing is trained
        by_epochs = by_epochs or trainer.current_epoch >= swa.swa_end
    return by_steps or by_epochs or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def swaps_weights(trainer: Trainer) -> bool:
    """Whether a callback replaces the trained weights by averaged ones when training ends."""
    return bool(callbacks_of(trainer, _AVERAGING))


def has_averaged_weights(trainer: Trainer) -> bool:
    """Whether this is the epoch that stochastic weight averaging adds for batch statistics."""
    averaging = callbacks_of(trainer, StochasticWeightAveraging)
    return any(trainer.current_epoch > swa.swa_end for swa in averaging)


def patience(trainer: Trainer) -> float | None:
    """The seconds that other processes wait for this one before they fail, or None if unknown."""
    limit = getattr(trainer.strategy, "_timeout", None)
    if trainer.world_size == 1 or not isinstance(limit, timedelta):
        return None
    return limit.total_seconds()


@contextlib.contextmanager
def lent_weights(pl_module: LightningModule, weights: dict[str, Tensor]) -> Iterator[None]:
    """A context in which the module has these values of parameters and buffers, by name."""
    own = {n: t.detach().clone() for n, t in weights_of(pl_module).items()}
    try:
        _write(pl_module, weights)
        yield
    finally:
        _write(pl_module, own)


def weights_of(pl_module: LightningModule) -> dict[str, Tensor]:
    """The parameters and buffers of the module, by name."""
    return {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}


@torch.no_grad()
def _write(pl_module: LightningModule, weights: dict[str, Tensor]) -> None:
    """Copy these values into the parameters and buffers of the module."""
    for name, tensor in weights_of(pl_module).items():
        tensor.copy_(weights[name])


@contextlib.contextmanager
def unlogged(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """A context in which `self.log` and calls of the Trainer's loggers in a forward do nothing.

    Otherwise the Trainer would log values of a measurement as values of the training.
    """
    modules = [m for m in pl_module.modules() if isinstance(m, LightningModule)]
    loggers = trainer.loggers
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(_muted(module, ("log",)))
        for logger in loggers:  # a forward may have a reference to a logger
            kept = [n for n in _LOGGING if callable(getattr(logger, n, None))]
            stack.enter_context(_muted(logger, kept))
        # A forward that uses `self.logger` or its `experiment` gets a dummy.
        trainer.loggers = [DummyLogger() for _ in loggers]
        try:
            yield
        finally:
            trainer.loggers = loggers


@contextlib.contextmanager
def _muted(target: object, names: Iterable[str]) -> Iterator[None]:
    """A context in which the methods of these names do nothing on one object."""
    own = vars(target)
    before = {name: own[name] for name in names if name in own}
    try:
        own.update(dict.fromkeys(names, _ignore))
        yield
    finally:
        for name in names:
            own.pop(name, None)
        own.update(before)


def _ignore(*args: Any, **kwargs: Any) -> None:
    return None


def callbacks_of(trainer: Trainer, kind: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    """The callbacks of this kind among those of the Trainer, in their order."""
    every = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in every if isinstance(c, kind)]


def refuse_sharded(trainer: Trainer, name: str) -> None:
    """Raise a `ValueError` about a callback if the strategy splits parameters over processes."""
    if isinstance(trainer.strategy, _SHARDED):
        raise value_error(
            "strategy",
            f"one that keeps the whole network in each process while {name} is used",
            type(trainer.strategy).__name__,
            "Use strategy='ddp', or remove the callback from this run.",
        )
