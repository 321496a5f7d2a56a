"""What MLflow keeps of a run in its folder, and what several kinds of loggers keep of the same."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_runs import LIGHTNING_SAYS, classifier, data, fit, loader
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import torch_ntk.callbacks._loggers as ours
from torch_ntk.callbacks import KernelSpectrum, LossForecast, NTKMonitor

mlflow = pytest.importorskip("mlflow")

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS],
    pytest.mark.filterwarnings("ignore:The filesystem tracking backend:FutureWarning"),
    pytest.mark.timeout(120),
]
Points = list[tuple[int, float]]


@contextmanager
def in_files(folder: Path, **options: Any) -> Iterator[MLFlowLogger]:
    """A logger that writes below `folder` only; everything global is as before afterwards."""
    settings = {
        "MLFLOW_ALLOW_FILE_STORE": "true",  # newer releases would rather have a database
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with mock.patch.dict(os.environ, settings):
        try:
            uri = f"file:{folder}"
            yield MLFlowLogger(tracking_uri=uri, save_dir=str(folder), **options)
        finally:
            mlflow.set_tracking_uri(None)


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[MLFlowLogger]:
    with in_files(tmp_path / "m") as made:
        yield made


def client(logger: MLFlowLogger) -> Any:
    """Not the logger's own: only what is written counts."""
    return mlflow.tracking.MlflowClient(f"file:{logger.save_dir}")


def points(logger: MLFlowLogger, name: str) -> Points:
    return [(m.step, m.value) for m in client(logger).get_metric_history(logger.run_id, name)]


def pictures(logger: MLFlowLogger, tag: str) -> list[str]:
    """The names of the images of a tag, each of which is opened and looked at."""
    files = [f.path for f in client(logger).list_artifacts(logger.run_id, tag)]
    folder = client(logger).get_run(logger.run_id).info.artifact_uri.removeprefix("file://")
    for file in files:
        with Image.open(Path(folder) / file) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 300
            assert np.asarray(picture).std() > 1  # something is drawn
    return [file.rpartition("/")[2] for file in files]


def measured(callback: Any, name: str) -> Points:
    history = callback.history
    pairs = zip(history["step"], history[name], strict=True)
    return [(int(step), value) for step, value in pairs if not math.isnan(value)]


def test_every_point_and_every_figure(logger: MLFlowLogger, tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=1)
    fit(tmp_path, classifier(), [monitor], logger=logger, log_every_n_steps=1)
    run = client(logger).get_run(logger.run_id)
    names = set(monitor.history) - {"step"}
    assert set(run.data.metrics) == names | {"loss", "epoch"}
    assert len(names) == 15
    for name in names:
        found = points(logger, name)
        assert found == measured(monitor, name)
        assert [s for s, _ in found] == list(range(name == "ntk/velocity", 11))
    assert [s for s, _ in points(logger, "loss")] == list(range(10))
    for name in ("kernel", "spectrum", "linearization"):
        steps = [f"{s:08d}.png" for s in (0, 1, 3, 7, 10)]
        assert pictures(logger, f"ntk/{name}") == steps
    assert run.data.tags["ntk/verdict"] == str(monitor.verdict)
    assert monitor.verdict.regime == "feature learning"
    assert run.info.status == "FINISHED"


def test_a_trainer_that_goes_on(logger: MLFlowLogger, tmp_path: Path) -> None:
    """The second fit writes to the run that the first has finished."""
    monitor, module = NTKMonitor(6, every_n_steps=5), classifier()
    run = fit(tmp_path, module, [monitor], logger=logger)
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())
    assert [s for s, _ in points(logger, "ntk/drift")] == [0, 5, 10, 15]
    assert points(logger, "ntk/drift") == measured(monitor, "ntk/drift")
    tags = client(logger).get_run(logger.run_id).data.tags
    assert tags["ntk/verdict"] == str(monitor.verdict)


def oddly_named() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 8))
    network.add_module("c*d", nn.Linear(8, 8))
    network.add_module("c+d", nn.Linear(8, 8))
    network.add_module("層", nn.Linear(8, 8))
    network.add_module("a" * 300, nn.Linear(8, 3))
    return network


def test_names_that_mlflow_refuses(logger: MLFlowLogger, tmp_path: Path) -> None:
    """Lightning would drop the characters: a warning, names in common, and at last an error."""
    metrics = ("drift", "module_drift", "param_drift")
    monitor = NTKMonitor(6, every_n_steps=5, prefix="/x//y:z", metrics=metrics)
    fit(tmp_path, classifier(oddly_named), [monitor], logger=logger)
    kept = set(client(logger).get_run(logger.run_id).data.metrics)
    modules = ("c_2ad", "c_2bd", "_5c64")
    stem = "/x//y:z/module_drift"
    network = next(n for n in monitor.history if n.endswith("c*d"))
    before = network.removeprefix(f"{stem}/").removesuffix("c*d")
    for odd, plain in zip(("c*d", "c+d", "層"), modules, strict=True):
        name = f"x/y_3az/module_drift/{before}{plain}"
        assert name in kept
        assert points(logger, name) == measured(monitor, f"{stem}/{before}{odd}")
    (long,) = (name for name in kept if "aaaa" in name)
    assert 240 < len(long) <= 250
    assert len(kept) == len(set(monitor.history) - {"step"})
    assert pictures(logger, "x/y_3az/kernel") == [f"{s:08d}.png" for s in (0, 5, 10)]
    assert client(logger).get_run(logger.run_id).data.tags["x/y_3az/verdict"]


NAMES = ["ntk/module_drift/0.weight", "a_b", "a+b", "a*b", "..", "./b", "../c", "/", "d/", "e//f"]


@pytest.mark.parametrize("name", [*NAMES, "\n", "g/../h", "%" * 90, "i/" * 200, "." * 300])
def test_any_name_is_taken(name: str, logger: MLFlowLogger) -> None:
    ours.log_scalars(mock.Mock(loggers=[logger]), {name: 0.5}, 2)
    (kept,) = client(logger).get_run(logger.run_id).data.metrics
    assert kept == ours.mlflow_name(name)
    assert points(logger, kept) == [(2, 0.5)]


def test_plain_names_stay_and_others_stay_apart() -> None:
    assert ours.mlflow_name("ntk/module_drift/0.weight-a b") == "ntk/module_drift/0.weight-a b"
    assert len({ours.mlflow_name(name) for name in NAMES[:4]}) == 4


def test_values_that_are_no_numbers_and_many_names(logger: MLFlowLogger) -> None:
    values = {"nan": math.nan, "up": math.inf, "down": -math.inf}
    many = {f"many/{i}": float(i) for i in range(1100)}  # a request takes 1000
    ours.log_scalars(mock.Mock(loggers=[logger]), {**values, **many}, 3)
    ((step, nan),) = points(logger, "nan")
    assert step == 3
    assert math.isnan(nan)
    assert points(logger, "up") == [(3, math.inf)]
    assert points(logger, "down") == [(3, -math.inf)]
    metrics = client(logger).get_run(logger.run_id).data.metrics
    assert {n: v for n, v in metrics.items() if n in many} == many


@pytest.fixture
def four(logger: MLFlowLogger, tmp_path: Path) -> Iterator[list[Any]]:
    from test_callbacks_wandb import offline  # skips the test where W&B is missing

    board, table = TensorBoardLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")
    with offline(tmp_path / "w") as wandb:
        yield [board, table, wandb, DummyLogger(), logger]


def assert_same_in_all(loggers: list[Any], callbacks: list[Any], steps: list[int]) -> None:
    """The curves of each callback are the same in TensorBoard, CSV, W&B and MLflow."""
    from test_callbacks_wandb import Kept

    board, table, wandb, _, mlflow_logger = loggers
    events = EventAccumulator(board.log_dir, {"scalars": 0}).Reload()
    with open(Path(table.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = Kept(wandb)
    for callback in callbacks:
        assert callback.history["step"] == steps
        for name in set(callback.history) - {"step"}:
            expected = measured(callback, name)
            assert expected
            assert kept.points(name) == expected
            assert points(mlflow_logger, name) == expected
            assert [(int(r["step"]), float(r[name])) for r in rows if r[name]] == expected
            shown = events.Scalars(name)
            assert [p.step for p in shown] == [step for step, _ in expected]
            assert [p.value for p in shown] == pytest.approx([v for _, v in expected], rel=1e-6)


def test_four_loggers_at_once(four: list[Any], tmp_path: Path) -> None:
    callbacks = [
        NTKMonitor(6, every_n_steps=2),
        KernelSpectrum(6, every_n_steps=2, prefix="spectrum"),
    ]
    fit(tmp_path, classifier(), callbacks, logger=four, log_every_n_steps=1)
    assert_same_in_all(four, callbacks, [0, 2, 4, 6, 8, 10])
    for tag in ("ntk/kernel", "ntk/spectrum", "ntk/linearization", "spectrum/spectrum"):
        assert pictures(four[-1], tag) == [f"{s:08d}.png" for s in (0, 2, 6, 10)]


def test_a_forecast_in_four_loggers(four: list[Any], tmp_path: Path) -> None:
    forecast = LossForecast(data().tensors, every_n_steps=5)
    fit(tmp_path, classifier(lr=0.01), [forecast], logger=four)
    assert {"forecast/predicted", "forecast/actual"} < set(forecast.history)
    assert_same_in_all(four, [forecast], [0, 5, 10])


def test_a_trial_run_writes_to_none(four: list[Any], tmp_path: Path) -> None:
    """Lightning puts dummies in their place."""
    monitor = NTKMonitor(6, every_n_steps=1)
    run = fit(tmp_path, classifier(), [monitor], logger=four, fast_dev_run=2)
    assert all(isinstance(logger, DummyLogger) for logger in run.loggers)
    assert monitor.history["step"] == [0, 1, 2]
    assert not list(tmp_path.rglob("*.wandb"))
    assert not list(tmp_path.rglob("artifacts"))


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    with in_files(tmp_path / "m") as logger:
        logger.log_metrics({"a": 1.0}, step=2)
        assert os.environ["MLFLOW_TRACKING_URI"] == f"file:{tmp_path}/m"
        assert points(logger, "a") == [(2, 1.0)]
        assert mlflow.active_run() is None
    assert dict(os.environ) == before
