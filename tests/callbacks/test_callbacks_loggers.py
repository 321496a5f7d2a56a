"""Every logger gets every point, each in the way that it takes it."""

from __future__ import annotations

import csv
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_runs import LIGHTNING_SAYS, classifier, fit, loader, with_batch_norm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torch_ntk.callbacks._loggers as ours
from torch_ntk.callbacks import KernelDrift, KernelSpectrum, LinearizationGap, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]
NAMES = {
    "ntk/drift",
    "ntk/kernel_distance",
    "ntk/lambda_min",
    "ntk/lambda_max",
    "ntk/condition",
    "ntk/effective_rank",
    "ntk/alignment",
    "ntk/param_drift",
    "ntk/linearization_gap",
    "ntk/numerical_rank",
    "ntk/noise_floor",
    "ntk/velocity",
    "ntk/seconds",
    "ntk/overhead",
    "ntk/batches",
}
OF_ONE = ("seconds", "overhead", "batches")


def events(logger: TensorBoardLogger) -> EventAccumulator:
    return EventAccumulator(logger.log_dir, {"images": 0, "scalars": 0, "tensors": 0}).Reload()


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_tensorboard_and_csv_have_every_point(tmp_path: Path) -> None:
    """Also off `log_every_n_steps`, where `self.log` would drop them."""
    board, table = TensorBoardLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")
    monitor = NTKMonitor(6, every_n_steps=1)
    fit(tmp_path, classifier(), [monitor], logger=[board, table], log_every_n_steps=50)
    history = monitor.history
    assert set(history) == NAMES | {"step"}
    assert history["step"] == list(range(11))

    seen = events(board)
    found = [row for row in rows(table) if row["ntk/drift"]]
    for name in NAMES:
        start = 1 if name == "ntk/velocity" else 0  # no measurement before the first one
        points = seen.Scalars(name)
        assert [p.step for p in points] == list(range(start, 11))
        assert [p.value for p in points] == pytest.approx(history[name][start:], rel=1e-6)
        assert [float(row[name]) for row in found[start:]] == history[name][start:]
    assert [int(row["step"]) for row in found] == list(range(11))


def test_images_and_verdict_on_tensorboard(tmp_path: Path) -> None:
    board, monitor = TensorBoardLogger(tmp_path), NTKMonitor(6, every_n_steps=1)
    fit(tmp_path, classifier(), [monitor], logger=board)
    seen = events(board)
    assert set(seen.Tags()["images"]) == {"ntk/kernel", "ntk/spectrum", "ntk/linearization"}
    for tag in seen.Tags()["images"]:
        images = seen.Images(tag)
        assert [i.step for i in images] == [0, 1, 3, 7, 10]  # the 1st, 2nd, 4th, 8th, last point
        assert all(i.width > 300 and i.height > 300 for i in images)
    *_, text = seen.Tensors("ntk/verdict/text_summary")
    assert text.step == 10
    assert text.tensor_proto.string_val[0].decode() == monitor.verdict.text


def test_the_parts_share_a_prefix_and_no_curve(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    parts = [kind(6, every_n_steps=5) for kind in (KernelDrift, KernelSpectrum, LinearizationGap)]
    fit(tmp_path, classifier(), parts, logger=board)
    seen = events(board)
    own = {f"ntk/{kind}_{n}" for kind in ("drift", "spectrum", "linearization") for n in OF_ONE}
    scalars = {tag for tag in seen.Tags()["scalars"] if tag.startswith("ntk/")}
    assert scalars == (NAMES - {"ntk/alignment", *(f"ntk/{n}" for n in OF_ONE)}) | own
    for tag in scalars - {"ntk/velocity"}:
        assert [p.step for p in seen.Scalars(tag)] == [0, 5, 10]
    assert set(seen.Tags()["images"]) == {"ntk/kernel", "ntk/spectrum", "ntk/linearization"}
    assert all(len(seen.Images(tag)) == 3 for tag in seen.Tags()["images"])


def test_figures_can_be_left_out(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    fit(tmp_path, classifier(), [NTKMonitor(6, log_figures=False)], logger=board)
    assert events(board).Tags()["images"] == []


def test_the_axis_of_the_loggers_under_accumulation(tmp_path: Path) -> None:
    """The monitor's steps are those at which Lightning writes the loss."""
    table, monitor = CSVLogger(tmp_path), NTKMonitor(6, every_n_steps=1)
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "log_every_n_steps": 1}
    fit(tmp_path, classifier(), [monitor], logger=table, **options)
    losses = {int(row["step"]) for row in rows(table) if row["loss"]}
    assert losses == {0, 1, 2, 3, 4, 5}
    assert monitor.history["step"] == [0, 1, 2, 3, 4, 5, 6]


def test_without_a_logger_one_warning(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5)
    module = classifier()
    with pytest.warns(UserWarning, match="no logger") as caught:
        run = fit(tmp_path, module, [monitor])
    assert sum("no logger" in str(w.message) for w in caught) == 1
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())  # the same Trainer once more: nothing new to say
    assert monitor.history["step"] == [0, 5, 10, 15]


@pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"barebones": True}])
def test_runs_without_real_loggers(options: dict[str, Any], tmp_path: Path) -> None:
    settings = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    )
    monitor = NTKMonitor(6, every_n_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Trainer has no logger")
        warnings.filterwarnings("ignore", message=".*barebones.*")
        fit(tmp_path, classifier(), [monitor], **{**settings, **options})
    assert monitor.history["step"][0] == 0
    assert monitor.history["ntk/drift"][-1] > 0


class Recorder(Logger):
    """A logger that is no kind that the package knows."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int | None, dict[str, float]]] = []
        self.saved = 0

    name = property(lambda self: "recorder")  # type: ignore[assignment]
    version = property(lambda self: 0)  # type: ignore[assignment]
    experiment = property(lambda self: self)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.points.append((step, metrics))

    def save(self) -> None:
        self.saved = len(self.points)


class FakeWandb(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.summary: dict[str, str] = {}
        self.images: list[tuple[str, int, tuple[int, ...]]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        (image,) = images
        assert isinstance(image, np.ndarray)
        assert image.dtype == np.uint8
        self.images.append((key, step, image.shape))


class FakeMLFlow(Recorder):
    run_id = "run"

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.tags: dict[str, str] = {}

    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        assert run_id == "run"
        assert hasattr(figure, "savefig")
        self.files.append(artifact_file)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        assert run_id == "run"
        self.tags[key] = value


class FakeComet(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.figures: list[tuple[str, int]] = []

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        self.figures.append((name, step))


def test_each_kind_of_logger_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "WandbLogger", FakeWandb)
    monkeypatch.setattr(ours, "MLFlowLogger", FakeMLFlow)
    monkeypatch.setattr(ours, "CometLogger", FakeComet)
    wandb, mlflow, comet, unknown = FakeWandb(), FakeMLFlow(), FakeComet(), Recorder()
    monitor = NTKMonitor(6, every_n_steps=10)
    fit(tmp_path, classifier(), [monitor], logger=[wandb, mlflow, comet, unknown])
    keys = ("ntk/kernel", "ntk/spectrum", "ntk/linearization")
    assert [(k, s) for k, s, _ in wandb.images] == [(k, s) for s in (0, 10) for k in keys]
    assert all(len(shape) == 3 and shape[2] == 3 for *_, shape in wandb.images)
    assert mlflow.files == [f"{k}/{s:08d}.png" for s in (0, 10) for k in keys]
    assert wandb.summary == mlflow.tags == {"ntk/verdict": str(monitor.verdict)}
    assert comet.figures == [(k, s) for s in (0, 10) for k in keys]
    for logger in (wandb, mlflow, comet, unknown):
        points = [(s, m) for s, m in logger.points if "ntk/drift" in m]
        assert [s for s, _ in points] == [0, 10]
        assert [m["ntk/drift"] for _, m in points] == monitor.history["ntk/drift"]
        assert logger.saved == len(logger.points)


def test_the_kinds_are_those_of_lightning() -> None:
    for name in ("TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger"):
        assert getattr(ours, name) is getattr(lightning_loggers, name)


def test_a_forward_that_logs_adds_nothing_to_the_results(tmp_path: Path) -> None:
    from test_callbacks_identity import LogsInForward

    tables = []
    for monitors in ([], [NTKMonitor(6, every_n_steps=1)]):
        table = CSVLogger(tmp_path, version=len(tables))
        fit(tmp_path, classifier(with_batch_norm, LogsInForward), monitors, logger=table)
        tables.append([row["in_forward"] for row in rows(table) if row["in_forward"]])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def test_a_forward_that_calls_its_loggers_writes_nothing_more(tmp_path: Path) -> None:
    """Whether it finds them in the Trainer or keeps one of them."""
    from test_callbacks_identity import LogsDirectly

    tables = []
    for monitors in ([], [NTKMonitor(6, every_n_steps=1)]):
        table = CSVLogger(tmp_path, version=len(tables))
        module = classifier(with_batch_norm, LogsDirectly)
        module.kept = table
        run = fit(tmp_path, module, monitors, logger=table)
        assert run.loggers == [table]
        assert "log_metrics" not in vars(table)
        names = ("direct", "experiment", "kept")
        # Each of the three calls writes a row of its own: look at all of them.
        written = [{n: row[n] for n in names} for row in rows(table)]
        tables.append([row for row in written if any(row.values())])
    assert len(tables[0]) == 3 * 10
    assert tables[0] == tables[1]


class Interrupt(Callback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 7:
            raise self.error("enough")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Lightning leaves the process deaf to further interrupts."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt, SystemExit), (RuntimeError, RuntimeError)]
)
def test_what_was_measured_survives_an_interruption(
    error: type[BaseException], seen: type[BaseException], tmp_path: Path
) -> None:
    board, table = TensorBoardLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")
    monitor = NTKMonitor(6, every_n_steps=1)
    with pytest.raises(seen):
        fit(tmp_path, classifier(), [monitor, Interrupt(error)], logger=[board, table])
    assert monitor.history["step"] == [0, 1, 2, 3, 4, 5, 6]
    assert [p.step for p in events(board).Scalars("ntk/drift")] == [0, 1, 2, 3, 4, 5, 6]
    assert sum(bool(row["ntk/drift"]) for row in rows(table)) == 7
