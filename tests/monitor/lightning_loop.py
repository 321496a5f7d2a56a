"""The training of `test_monitor_loop.py` under Lightning, and a comparison of nested values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torch_ntk.callbacks import NTKMonitor


class Module(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def lightning_history(
    path: Path, network: nn.Module, batches: list[Any]
) -> tuple[dict[str, list[float]], str]:
    """History and verdict of `NTKMonitor` over one pass of the batches."""
    monitor = NTKMonitor(8, every_n_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=path,
            callbacks=[monitor],
        )
        trainer.fit(Module(network), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return monitor.history, str(monitor.verdict)


def assert_equal(a: Any, b: Any) -> None:
    """Bit by bit, at any depth."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for v, w in zip(a, b, strict=True):
            assert_equal(v, w)
    else:
        assert a == b
