"""SIGTERM and Ctrl-C during a measurement that would take minutes, in a process of its own."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import signal, sys, time, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell has put aside
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch_ntk.callbacks import NTKMonitor

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        if not self.training and self.global_step == 3:
            print("measuring", flush=True)
            time.sleep(300)
        return self.layer(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

warnings.filterwarnings("ignore", message=".*(num_workers|log_every_n_steps|GPU|sanity).*")
monitor = NTKMonitor(at_steps=[0, 1, 3])
trainer = Trainer(
    max_steps=8, accelerator="cpu", logger=CSVLogger(sys.argv[1]), callbacks=[monitor],
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
data = TensorDataset(torch.randn(64, 4), torch.arange(64) % 3)
trainer.fit(Net(), DataLoader(data, 8))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_measurement_and_what_was_recorded_is_written(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "measuring\n"
        time.sleep(0.2)
        child.send_signal(number)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
        child.communicate()
    (path,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    drift = {int(row["step"]): float(row["ntk/drift"]) for row in rows if row["ntk/drift"]}
    assert drift.keys() == {0, 1}  # and not 8: the training has not gone on to its end
    assert ("The measurement at step 3 was ended by SIGTERM" in told) == (number == signal.SIGTERM)
