"""Measure what `NTKMonitor` costs a training: in steps, in share of the time, and in memory.

    python benchmarks/monitor.py [--quick]

The network is ResNet-18 for images of 32×32 with batch normalization, trained in batches of 64
with a probe of 32 samples and the monitor's defaults: kernel, spectrum, linearization, figures.
Every part runs in a process of its own; the longest are 200 steps within the default budget, some
five minutes on two cores. Prints the figures and, without `--quick`, writes
`benchmarks/monitor.json` and the page `docs/benchmarks/monitor.md`. Run it on an idle machine.
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
from common import DOCS, HERE, environment, peak_memory, worker, write_json
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from monitor_report import BATCH, PROBE, in_words, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from torch_ntk.callbacks import NTKMonitor
from torch_ntk.memory import budget

SCRIPT = Path(__file__).resolve()


class Classifier(LightningModule):
    """A network under cross-entropy and SGD with momentum."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


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


def network() -> nn.Module:
    """ResNet-18 with a first layer for small images."""
    torch.manual_seed(0)
    found = resnet18(num_classes=10)
    found.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    found.maxpool = nn.Identity()
    return found


def train(steps: int, monitor: NTKMonitor | None) -> list[Clock]:
    """Train for some steps; the clocks before and after the monitor."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH * steps, 3, 32, 32, generator=generator)
    y = torch.randint(10, (len(x),), generator=generator)
    clocks = [Clock(), Clock()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            callbacks=[clocks[0], *([] if monitor is None else [monitor]), clocks[1]],
            logger=TensorBoardLogger(folder),
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(network()), DataLoader(TensorDataset(x, y), BATCH))
    return clocks


def firings(clocks: list[Clock]) -> tuple[list[float], list[float]]:
    """Seconds of every step, and what the monitor took before each step and at the end."""
    before, after = clocks
    steps = [end - start for start, end in zip(after.starts, before.ends, strict=True)]
    seconds = [b - a for a, b in zip(before.starts, after.starts, strict=True)]
    return steps, [*seconds, after.finish - before.finish]


def firing(job: dict[str, Any]) -> dict[str, Any]:
    """A measurement in training steps: the first, with all proofs, and the later ones."""
    at = [0, 4, 8, 12]
    steps, seconds = firings(train(16, NTKMonitor(PROBE, at_steps=at)))
    step = statistics.median(steps[1:])
    later = [seconds[i] for i in (*at[1:], 16)]
    return {
        "step": step,
        "first": seconds[0],
        "later": later,
        "steps_of_first": seconds[0] / step,
        "steps_of_later": statistics.median(later) / step,
    }


def share(job: dict[str, Any]) -> dict[str, Any]:
    """The share of the time within the default budget, as logged and by the clock."""
    monitor = NTKMonitor(PROBE)
    clocks = train(job["steps"], monitor)
    steps, seconds = firings(clocks)
    whole = clocks[1].finish - clocks[0].starts[0]
    return {
        "steps": job["steps"],
        "seconds": whole,
        "step": statistics.median(steps),
        "points": len(monitor.history["step"]),
        "logged": monitor.history["ntk/overhead"][-1],
        "share": sum(seconds) / whole,
    }


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """The highest memory of the process in a short training."""
    monitor = NTKMonitor(PROBE, at_steps=[0, 1]) if job["monitor"] else None
    allowed = budget(torch.device("cpu"))
    train(3, monitor)
    size = sum(t.numel() * t.element_size() for t in network().state_dict().values())
    return {"peak": peak_memory(), "model": size, "budget": allowed}


PARTS = {"firing": firing, "share": share, "memory": memory}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job in a process of its own."""
    found = worker(SCRIPT, job)
    assert found is not None
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="nothing is written")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if args.job:
        job = json.loads(args.job)
        print(json.dumps(PARTS[job["part"]](job)))
        return
    result: dict[str, Any] = {"environment": environment()}
    result["firing"] = run({"part": "firing"})
    result["share"] = run({"part": "share", "steps": 200})
    plain, watched = (run({"part": "memory", "monitor": m}) for m in (False, True))
    result["memory"] = {
        "without": plain["peak"],
        "more": watched["peak"] - plain["peak"],
        "model": plain["model"],
        "budget": plain["budget"],
    }
    print("\n".join(in_words(result)))
    if not args.quick:
        write_json(HERE / "monitor.json", result)
        report(result, DOCS)


if __name__ == "__main__":
    main()
