"""Training on the nodes of one graph under Lightning, as PyTorch Geometric has it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from coupled_cases import EDGES, normal
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import LIGHTNING_SAYS
from torch import Tensor
from torch.utils.data import DataLoader

from torch_ntk.callbacks import LossForecast, NTKMonitor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles a class with TorchScript, which is deprecated
    from torch_geometric.data import Data
    from torch_geometric.nn import GCNConv

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]

X, Y = normal(5, 3), torch.tensor([0, 1, 1, 0])
MASK = torch.tensor([True, True, False, True, True])


class Nodes(LightningModule):
    """Two convolutions of PyTorch Geometric, trained on some of the nodes of one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(3, 8), GCNConv(8, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x, edge_index)), edge_index)

    def training_step(self, data: Data, index: int) -> Tensor:
        return F.cross_entropy(self(data.x, data.edge_index)[MASK], data.y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fitted(folder: Path, *callbacks: Any, steps: int = 8) -> Nodes:
    torch.manual_seed(0)
    module = Nodes()
    data = Data(x=X.float(), edge_index=EDGES, y=Y)
    trainer = Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader([data], collate_fn=lambda batch: batch[0]))
    return module


def test_node_classification_under_lightning(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "coupled": True, "every_n_steps": 2,
        "input_fn": lambda data: ((data.x, data.edge_index), data.y),
        "forward_fn": lambda net, x: net(*x)[MASK],
    }  # fmt: skip
    monitor = NTKMonitor(kernel="optimizer", **options)
    whole = ((X.float(), EDGES), Y)
    forecast = LossForecast(whole, anchor_at=2, prefix="forecast", **options)
    with_monitor, plain = fitted(tmp_path, monitor, forecast), fitted(tmp_path / "plain")
    for p, q in zip(with_monitor.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    history = monitor.history
    assert history["step"] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert history["ntk/drift"][-1] > 0.0
    assert 0.0 < history["ntk/linearization_gap"][-1] < 1.0
    predicted, actual = (forecast.history[f"forecast/{n}"] for n in ("predicted", "actual"))
    assert predicted[-1] == pytest.approx(actual[-1], rel=0.05)
