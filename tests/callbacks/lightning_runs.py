"""Small trainings for the tests of this folder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# What Lightning says about small runs on a CPU; the monitor has no part in it.
LIGHTNING_SAYS = [
    "ignore:The .* does not have many workers",
    "ignore:The number of training batches .* is smaller than the logging interval",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:Be aware that when using `ckpt_path`, callbacks",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:.*isinstance.treespec, LeafSpec.. is deprecated",
]


# What the monitor says where a test has no use for a logger.
QUIET = [*LIGHTNING_SAYS, "ignore:The Trainer has no logger"]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


class Classifier(LightningModule):
    """A network under cross-entropy and SGD with momentum; writes down the batches it sees."""

    def __init__(self, network: nn.Module, lr: float = 0.3) -> None:
        super().__init__()
        self.network, self.lr = network, lr
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        self.seen.append(y.clone())
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class TwoOptimizers(Classifier):
    """Manual optimization: two optimizers step in every batch."""

    def __init__(self, network: nn.Module, lr: float = 0.3) -> None:
        super().__init__(network, lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        halves = self.network[0], self.network[-1]
        return [torch.optim.SGD(half.parameters(), lr=self.lr) for half in halves]


def classifier(make: Any = mlp, kind: type[Classifier] = Classifier, **options: Any) -> Classifier:
    """The same module, with the same initial weights, at every call."""
    torch.manual_seed(5)
    return kind(make(), **options)


def data(n: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(n, 6, generator=generator)
    y = (x[:, :3] + 0.5 * torch.randn(n, 3, generator=generator)).argmax(1)
    return TensorDataset(x, y)


def loader(dataset: Any = None, batch_size: int = 8, shuffle: bool = True) -> DataLoader:
    return DataLoader(data() if dataset is None else dataset, batch_size, shuffle=shuffle)


def trainer(path: Path, callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": path,
        "max_epochs": 2,
    }
    return Trainer(callbacks=list(callbacks), **{**settings, **options})


def fit(
    path: Path,
    module: LightningModule,
    callbacks: Sequence[Callback] = (),
    batches: Any = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> Trainer:
    """Train from fixed random states; 5 batches of 8 in each of 2 epochs unless said otherwise."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    run = trainer(path, callbacks, **options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for networks of this size, threads only wait for each other
    try:
        run.fit(
            module,
            loader() if batches is None else batches,
            ckpt_path=ckpt_path,
            weights_only=None if ckpt_path is None else True,
        )
    finally:
        torch.set_num_threads(threads)
    return run


def untimed(history: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """A history without what the clock decides, None where nothing was measured."""
    kept = {n: v for n, v in history.items() if not n.endswith(("seconds", "overhead"))}
    return {n: [None if x != x else x for x in v] for n, v in kept.items()}


class Watch(Callback):
    """Keeps a copy of the module's weights and buffers at every optimizer step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._keep(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if step not in self.at:
            self.at[step] = {n: t.clone() for n, t in pl_module.state_dict().items()}
