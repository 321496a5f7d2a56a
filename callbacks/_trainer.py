"""The only place that reads what Lightning does not make public."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from torch_ntk._checks import message

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_AVERAGING = (StochasticWeightAveraging, WeightAveraging)


def steps_taken(trainer: Trainer) -> int:
    """The loggers' own step axis: batches after which an optimizer stepped.

    `trainer.global_step` counts the steps of all optimizers together; loggers do not use it.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether training ends after the epoch that is ending now."""
    by_steps = trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps
    limit = trainer.max_epochs
    by_epochs = limit is not None and limit >= 0 and trainer.current_epoch + 1 >= limit
    return by_steps or by_epochs or bool(trainer.should_stop)


def swaps_weights(trainer: Trainer) -> bool:
    """Whether averaged weights take the place of the trained ones when training ends."""
    return any(isinstance(c, _AVERAGING) for c in trainer.callbacks)  # type: ignore[attr-defined]


def refuse_sharded(trainer: Trainer, name: str) -> None:
    """Raise if no process holds the whole network.

    Raises:
        ValueError: The strategy splits parameters over processes.
    """
    if isinstance(trainer.strategy, _SHARDED):
        raise ValueError(
            message(
                "strategy",
                f"one that keeps the whole network in each process while {name} is used",
                type(trainer.strategy).__name__,
                "Use strategy='ddp', or remove the callback from this run.",
            )
        )


def find_network(pl_module: LightningModule, name: str | None) -> nn.Module:
    """The module whose kernel is measured.

    The one called `name`; without a name the LightningModule itself if it has a `forward`, else
    its only submodule with parameters.

    Raises:
        ValueError: There is no such module, or more than one to choose from.
    """
    children = {n: m for n, m in pl_module.named_children() if any(True for _ in m.parameters())}
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                message("network", f"one of {list(children)}", repr(name), "Name a submodule.")
            ) from error
    if type(pl_module).forward is not LightningModule.forward:
        return pl_module
    if len(children) == 1:
        return next(iter(children.values()))
    raise ValueError(
        message(
            "network",
            f"named when {type(pl_module).__name__} has no forward",
            f"{len(children)} submodules with parameters: {list(children)}",
            "Pass network='...', or define forward(self, x) on the LightningModule.",
        )
    )
