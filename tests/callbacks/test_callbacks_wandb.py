"""What Weights & Biases keeps of a run, read from the file that it uploads later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning_runs import LIGHTNING_SAYS, classifier, fit
from PIL import Image
from torch import nn

import torch_ntk.callbacks._loggers as ours
from torch_ntk.callbacks import KernelSpectrum, NTKMonitor

wandb = pytest.importorskip("wandb")

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS],
    pytest.mark.timeout(120),
]
DRAWN = ("ntk/kernel", "ntk/spectrum", "ntk/linearization")
Points = list[tuple[int, Any]]


@contextmanager
def offline(folder: Path, **options: Any) -> Iterator[WandbLogger]:
    """A logger that writes below `folder` only; everything global is as before afterwards."""
    settings = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # nothing answers there
        **{f"WANDB_{kind}_DIR": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")},
    }
    folder.mkdir(exist_ok=True)
    with mock.patch.dict(os.environ, settings):
        os.environ.pop("WANDB_API_KEY", None)
        try:
            yield WandbLogger(**{"offline": True, "save_dir": folder, **options})
        finally:
            wandb.finish()
            wandb.teardown()  # ends the process that writes
    assert wandb.run is None


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[WandbLogger]:
    with offline(tmp_path / "w") as made:
        yield made


class Kept:
    """What the run of a logger has written, once it is finished.

    Attributes:
        rows: Its history, a dictionary for each row, in their order.
        summary: The last value of everything.
        folder: Where media are.
    """

    def __init__(self, logger: WandbLogger) -> None:
        self.folder = Path(logger.experiment.settings.files_dir)
        (path,) = self.folder.parent.glob("*.wandb")
        logger.experiment.finish()
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        for record in _whole(path):
            if record.HasField("history"):
                self.rows.append(_values(record.history.item))
            if record.HasField("summary"):
                self.summary.update(_values(record.summary.update))

    def points(self, name: str) -> Points:
        """Steps on the axis of the charts, and values."""
        return [(row["trainer/global_step"], row[name]) for row in self.rows if name in row]

    def images(self, name: str) -> list[tuple[int, Path]]:
        """Steps and files of the images of one name."""
        found = [(s, files) for s, files in self.points(f"{name}/filenames")]
        return [(step, self.folder / file) for step, files in found for file in files]


def _values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def _whole(path: Path) -> list[Any]:
    """All records; another process may still be writing when a run says that it is finished."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        records = list(_records(path))
        if any(record.HasField("exit") for record in records):  # the last one
            return records
        time.sleep(0.02)
    raise TimeoutError(f"The run of {path} was not written to its end.")


def _records(path: Path) -> Iterator[Any]:
    """The complete records of a file: LevelDB's log format after a header of 7 bytes.

    Blocks have 32768 bytes; a piece has a checksum of 4, its length in 2 and its kind in one byte:
    1 is a whole record, 2 the first piece of one, 3 a middle one and 4 the last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), 7, b""
    if not content.startswith(b":W&B"):
        return
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + 7 + size > len(content):
            return
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def is_picture(path: Path) -> bool:
    """Whether it is a PNG on which something is drawn."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
        return picture.format == "PNG" and min(picture.size) > 300 and bool(pixels.std() > 1)


def measured(monitor: Any, name: str) -> Points:
    history = monitor.history
    pairs = zip(history["step"], history[name], strict=True)
    return [(int(s), v) for s, v in pairs if not (name == "ntk/velocity" and s == 0)]


def test_every_point_and_every_image(logger: WandbLogger, tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=1)
    fit(tmp_path, classifier(), [monitor], logger=logger, log_every_n_steps=1)
    kept = Kept(logger)

    names = set(monitor.history) - {"step"}
    assert len(names) == 15
    for name in names:
        assert kept.points(name) == measured(monitor, name)
        assert kept.summary[name] == monitor.history[name][-1]
    assert [step for step, _ in kept.points("loss")] == list(range(10))
    # A row for each call: 11 measurements, 3 figures at 5 of them, 10 losses.
    assert [row.get("_step", 0) for row in kept.rows] == list(range(36))

    for name in DRAWN:
        images = kept.images(name)
        assert [step for step, _ in images] == [0, 1, 3, 7, 10]
        assert all(is_picture(path) for _, path in images)
    assert kept.summary["ntk/verdict"] == str(monitor.verdict)
    assert monitor.verdict.regime == "feature learning"


class LogsAhead(Callback):
    """A user who counts in a way of his own, and is ahead of the Trainer."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        (logger,) = trainer.loggers
        step = trainer.global_step
        logger.log_metrics({"ahead": float(step)}, step=step + 100)
        logger.experiment.log({"own": step}, step=1000 + 10 * step)


def test_nothing_is_dropped_after_a_later_step(logger: WandbLogger, tmp_path: Path) -> None:
    """W&B refuses what is logged below its own counter; the monitor leaves that alone."""
    monitors = [NTKMonitor(6, every_n_steps=1), KernelSpectrum(6, every_n_steps=2, prefix="b")]
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "log_every_n_steps": 1}
    fit(tmp_path, classifier(), [LogsAhead(), *monitors], logger=logger, **options)
    kept = Kept(logger)
    assert monitors[0].history["step"] == [0, 1, 2, 3, 4, 5, 6]
    assert kept.points("ntk/drift") == measured(monitors[0], "ntk/drift")
    assert kept.points("b/lambda_max") == measured(monitors[1], "b/lambda_max")
    assert [step for step, _ in kept.points("b/condition")] == [0, 2, 4, 6]
    assert [step for step, _ in kept.images("ntk/kernel")] == [0, 1, 3, 6]
    assert [step for step, _ in kept.points("loss")] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in kept.points("ahead")] == [100 + s for s in _steps_of_batches()]


def _steps_of_batches() -> list[int]:
    """At the start of each batch, when two make a step and the last of an epoch one alone."""
    return [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]


def oddly_named() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 8))
    network.add_module("a+b: 1", nn.Tanh())
    network.add_module("c*d", nn.Linear(8, 8))
    network.add_module("c+d", nn.Linear(8, 8))
    network.add_module("層", nn.Linear(8, 3))
    return network


def test_odd_names_of_modules(logger: WandbLogger, tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5, prefix="x y:z", metrics=("drift", "module_drift"))
    fit(tmp_path, classifier(oddly_named), [monitor], logger=logger)
    kept = Kept(logger)
    names = [name for name in monitor.history if "module_drift" in name]
    odd = {f"x y:z/module_drift/network.{name}" for name in ("c*d", "c+d", "層")}
    assert odd < set(names)
    for name in names:
        assert kept.points(name) == measured(monitor, name)
        assert [step for step, _ in kept.points(name)] == [0, 5, 10]
    assert [step for step, _ in kept.images("x y:z/kernel")] == [0, 5, 10]
    assert all(is_picture(path) for _, path in kept.images("x y:z/kernel"))


def test_values_that_are_no_numbers(logger: WandbLogger, tmp_path: Path) -> None:
    run = fit(tmp_path, classifier(), logger=logger, limit_train_batches=1, max_epochs=1)
    ours.log_scalars(run, {"nan": float("nan"), "up": float("inf"), "down": -float("inf")}, 3)
    kept = Kept(logger)
    ((step, nan),) = kept.points("nan")
    assert step == 3
    assert np.isnan(nan)
    assert kept.points("up") == [(3, float("inf"))]
    assert kept.points("down") == [(3, -float("inf"))]


def test_what_was_measured_survives_an_error(logger: WandbLogger, tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("enough")

    monitor = NTKMonitor(6, every_n_steps=1)
    with pytest.raises(RuntimeError, match="enough"):
        fit(tmp_path, classifier(), [monitor, Breaks()], logger=logger)
    assert Kept(logger).points("ntk/drift") == measured(monitor, "ntk/drift")
    assert monitor.history["step"] == [0, 1, 2, 3]


def test_a_run_that_is_switched_off(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5)
    with offline(tmp_path / "w", mode="disabled") as logger:
        fit(tmp_path, classifier(), [monitor], logger=logger)
    assert monitor.history["step"] == [0, 5, 10]
    assert not list(tmp_path.rglob("*.wandb"))


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    with offline(tmp_path / "w") as logger:
        logger.log_metrics({"a": 1.0}, step=2)
        assert os.environ["WANDB_MODE"] == "dryrun"  # Lightning's way of saying offline
        assert Kept(logger).points("a") == [(2, 1)]
    assert dict(os.environ) == before
