"""Measure what a monitor costs a training: in steps, in share of the time, and in memory.

    python benchmarks/monitor.py [--quick] [--nets NAME ...]

Six trainings, from ResNet-18 and GPT-2 to an MLP for digits, each with the monitor's default probe
(up to 64 samples of the first batch). Of each it times training steps and measurements in turns,
and compares the highest memory of the process before the monitor begins and after its
measurements. Then ResNet-18 is trained for 200 steps under Lightning with `NTKMonitor()` within its
default budget. Every part runs in a process of its own. Prints the figures and, without `--quick`,
writes `benchmarks/monitor.json` and the page `docs/benchmarks/monitor.md`. Run it on an idle
machine: all of it takes nine minutes on two cores. `--quick` takes the three
small networks alone, and `--nets` those that it names, without the training under Lightning.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import HERE, environment, peak_memory, seconds, worker, write_json
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from monitor_nets import TRAININGS, loss_of
from monitor_report import in_words, report
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk.callbacks import NTKMonitor
from torch_ntk.monitor import METRICS, Monitor

SCRIPT = Path(__file__).resolve()
QUICK = ("lstm", "cnn", "mlp")
ASKED = ("drift", "linearization_gap")
STEPS = 200


def measurements(job: dict[str, Any]) -> dict[str, Any]:
    """Of one training: a step, and measurements with the memory that they add."""
    training = TRAININGS[job["net"]]
    torch.manual_seed(0)
    network = training.make()
    batch = training.batch(torch.Generator().manual_seed(0))
    optimizer = training.optimizer(network)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(network, batch).backward()
        optimizer.step()

    times = [seconds(step) for _ in range(3)][1:]
    before = peak_memory()
    found: dict[str, Any] = {}
    count = 0
    for name, metrics in (("asked", ASKED), ("all", METRICS)):
        monitor, own = Monitor(metrics=metrics, every_n_steps=1), []
        for _ in range(1 + training.later):
            own.append(seconds(lambda: monitor.step(network, optimizer, batch, step=count)))  # noqa: B023
            times.append(seconds(step))
            count += 1
        found[name] = {"first": own[0], "later": own[1:]}
    reference = monitor._session.record.reference
    assert reference is not None
    return {
        "name": training.name,
        "goal": training.goal,
        "parameters": sum(p.numel() for p in network.parameters()),
        "outputs": reference.size,
        "batch": len(batch["input_ids"] if isinstance(batch, dict) else batch[0]),
        "probe": len(reference.probe),
        "step": statistics.median(times),
        **found,
        "before": before,
        "more": peak_memory() - before,
        "model": sum(t.numel() * t.element_size() for t in network.state_dict().values()),
    }


class Classifier(LightningModule):
    """ResNet-18 under cross-entropy and SGD with momentum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.training_of = TRAININGS["resnet"]
        self.network = self.training_of.make()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> Any:
        """SGD with momentum."""
        return self.training_of.optimizer(self)


class Clock(Callback):
    """Notes the time at the start and the end of every batch, for callbacks between two of them."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.finish = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Before the batch."""
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        """After the batch."""
        self.ends.append(time.perf_counter())

    def on_train_epoch_end(self, *_: Any) -> None:
        """At the end, where the last measurement is made."""
        self.finish = time.perf_counter()


def share(job: dict[str, Any]) -> dict[str, Any]:
    """The share of the time within the default budget, as logged and by the clock."""
    monitor, (before, after) = NTKMonitor(), (Clock(), Clock())
    x, y = TRAININGS["resnet"].batch(torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            callbacks=[before, monitor, after],
            logger=TensorBoardLogger(folder),
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = TensorDataset(*(t.repeat(STEPS, *[1] * (t.ndim - 1)) for t in (x, y)))
        trainer.fit(Classifier(), DataLoader(data, len(x)))
    steps = [end - start for start, end in zip(after.starts, before.ends, strict=True)]
    spent = sum(b - a for a, b in zip(before.starts, after.starts, strict=True))
    whole = after.finish - before.starts[0]
    return {
        "steps": len(steps),
        "seconds": whole,
        "step": statistics.median(steps),
        "points": len(monitor.history["step"]),
        "logged": monitor.history["ntk/overhead"][-1],
        "share": (spent + after.finish - before.finish) / whole,
    }


PARTS = {"measurements": measurements, "share": share}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job in a process of its own."""
    found = worker(SCRIPT, job)
    assert found is not None
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rows, nothing is written")
    parser.add_argument("--nets", nargs="+", choices=list(TRAININGS), help="by default all")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if args.job:
        job = json.loads(args.job)
        print(json.dumps(PARTS[job["part"]](job)))
        return
    names = args.nets or (QUICK if args.quick else list(TRAININGS))
    result: dict[str, Any] = {"environment": environment(), "nets": args.nets, "rows": []}
    for name in names:
        result["rows"].append(run({"part": "measurements", "net": name}))
    result["share"] = None if args.quick or args.nets else run({"part": "share"})
    print("\n".join(in_words(result)))
    if not args.quick:
        write_json(HERE / "monitor.json", result)
        report(result)


if __name__ == "__main__":
    main()
