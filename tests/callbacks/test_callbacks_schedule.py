"""Which steps are measured, and with which weights, under everything that bends the step count."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning_runs import (
    QUIET,
    TwoOptimizers,
    Watch,
    classifier,
    fit,
    loader,
    untimed,
    with_batch_norm,
)

from torch_ntk import empirical_ntk
from torch_ntk.callbacks import KernelDrift, KernelSpectrum, LinearizationGap, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
EVERY = [NTKMonitor, KernelDrift, KernelSpectrum, LinearizationGap]


class StopAt(Callback):
    """Asks the Trainer to stop after a batch, or at the end of an epoch."""

    def __init__(self, batch: int | None = None, epoch: int | None = None) -> None:
        self.batch, self.epoch = batch, epoch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.batch is not None and trainer.global_step >= self.batch:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


RUNS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 3, 6, 9, 10]),
    ({"accumulate_grad_batches": 2}, [0, 3, 6]),  # 3 steps per epoch of 5 batches
    ({"max_steps": 7, "max_epochs": -1}, [0, 3, 6, 7]),
    ({"max_steps": 6, "max_epochs": -1}, [0, 3, 6]),
    ({"limit_train_batches": 2}, [0, 3, 4]),
    ({"limit_train_batches": 1, "max_epochs": 1}, [0, 1]),
    ({"overfit_batches": 1, "max_epochs": 4}, [0, 3, 4]),
]


# The monitor in each run, and the others, whose hooks are the same, in some of them.
@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        *((NTKMonitor, *run) for run in RUNS),
        *((kind, *run) for kind, run in zip(EVERY[1:], RUNS[:3], strict=True)),
    ],
)
def test_steps(kind: type, options: dict[str, Any], steps: list[int], tmp_path: Path) -> None:
    monitor = kind(4, every_n_steps=3, log_figures=False)
    batches = loader(shuffle="overfit_batches" not in options)
    fit(tmp_path, classifier(), [monitor], batches, **options)
    assert monitor.history["step"] == steps


def test_two_optimizers_count_once(tmp_path: Path) -> None:
    """`global_step` runs at twice the pace of the loggers' axis, which is the monitor's."""
    monitor = NTKMonitor(4, every_n_steps=3)
    run = fit(tmp_path, classifier(kind=TwoOptimizers), [monitor])
    assert run.global_step == 20
    assert monitor.history["step"] == [0, 3, 6, 9, 10]


def test_logarithmic(tmp_path: Path) -> None:
    monitor = NTKMonitor(4, every_n_steps=1, schedule="log", metrics=("param_drift",))
    fit(tmp_path, classifier(), [monitor], max_epochs=5)
    assert monitor.history["step"] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 25]


@pytest.mark.parametrize(
    ("kind", "accumulated"),
    [
        (NTKMonitor, 1),
        (NTKMonitor, 2),
        (KernelDrift, 2),
        (KernelSpectrum, 1),
        (LinearizationGap, 2),
    ],
)
def test_exactly_these_steps(kind: type, accumulated: int, tmp_path: Path) -> None:
    """Each once, however many batches pass at it; step 99 is never reached."""
    monitor = kind(4, at_steps=[2, 3, 5, 99], log_figures=False)
    fit(tmp_path, classifier(), [monitor], accumulate_grad_batches=accumulated)
    assert monitor.history["step"] == [0, 2, 3, 5, 10 // accumulated + (accumulated > 1)]


def test_both_axes(tmp_path: Path) -> None:
    """Five batches in an epoch make three steps when two are accumulated."""
    monitor = NTKMonitor(4, every_n_steps=1, metrics=("param_drift",))
    fit(tmp_path, classifier(), [monitor], accumulate_grad_batches=2)
    assert monitor.history["step"] == [0, 1, 2, 3, 4, 5, 6]
    assert monitor.history["ntk/batches"] == [0, 2, 4, 5, 7, 9, 10]


def test_the_overhead_is_a_share_of_the_time(tmp_path: Path) -> None:
    monitor = NTKMonitor(4, every_n_steps=1)
    started = time.perf_counter()
    fit(tmp_path, classifier(), [monitor])
    passed = time.perf_counter() - started
    shares, seconds = monitor.history["ntk/overhead"], monitor.history["ntk/seconds"]
    assert all(0.0 < share <= 1.0 for share in shares)
    assert shares[0] > 0.5  # nothing but a measurement has happened yet
    assert sum(seconds) / passed <= shares[-1]


def test_without_a_budget_the_ends_remain(tmp_path: Path) -> None:
    monitor = NTKMonitor(4, max_overhead=0.0)
    fit(tmp_path, classifier(), [monitor])
    assert monitor.history["step"] == [0, 10]


def test_a_whole_budget_measures_every_step(tmp_path: Path) -> None:
    monitor = NTKMonitor(4, max_overhead=1.0, metrics=("param_drift",))
    fit(tmp_path, classifier(), [monitor], max_epochs=1)
    assert monitor.history["step"] == list(range(6))


@pytest.mark.parametrize("stop", [StopAt(batch=4), StopAt(epoch=0)])
@pytest.mark.parametrize("first", [True, False])
def test_stopped_early(stop: StopAt, first: bool, tmp_path: Path) -> None:
    monitor = NTKMonitor(4, every_n_steps=3)
    pair = [monitor, stop] if first else [stop, monitor]
    fit(tmp_path, classifier(), pair)
    assert monitor.history["step"][-1] == (stop.batch or 5)
    assert monitor.history["step"][:2] == [0, 3]


def test_a_stop_that_must_wait_for_min_epochs(tmp_path: Path) -> None:
    monitor = NTKMonitor(4, every_n_steps=100)
    fit(tmp_path, classifier(), [StopAt(batch=1), monitor], min_epochs=3, max_epochs=9)
    assert monitor.history["step"] == [0, 15]


def swa() -> Callback:
    return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)


def ema() -> Callback:
    return EMAWeightAveraging(decay=0.5)


class Stopping(EarlyStopping):
    """Stops at the end of the second epoch, in the hook that runs after everybody else's."""

    def __init__(self) -> None:
        super().__init__("loss", patience=0, check_on_train_epoch_end=True, min_delta=1e9)


@pytest.mark.parametrize("make_other", [WeightAveraging, ema, swa])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stopping", [False, True])
def test_the_last_point_sees_the_trained_weights(
    make_other: Callable[[], Callback], first: bool, stopping: bool, tmp_path: Path
) -> None:
    """Averaged weights take the place of the trained ones at the end, for the user's use."""
    monitor, watch = KernelSpectrum(8, every_n_steps=4, recalibrate=False), Watch()
    module = classifier(with_batch_norm)
    pair = [monitor, make_other()] if first else [make_other(), monitor]
    others = [watch, Stopping()] if stopping else [watch]
    fit(tmp_path, module, [*others, *pair], max_epochs=3 if not stopping else 9)
    last = 10 if stopping else 15
    assert monitor.history["step"][-1] == last
    assert len(set(monitor.history["step"])) == len(monitor.history["step"])
    x = monitor.state_dict()["observer"]["anchor"]["x"]
    final = {n: t.clone() for n, t in module.state_dict().items()}

    def top() -> float:
        theta = empirical_ntk(module, x, output="mean", dtype=torch.float64)
        return float(torch.linalg.eigvalsh(theta)[-1])

    averaged = top()
    module.load_state_dict(watch.at[last])
    assert monitor.history["ntk/lambda_max"][-1] == pytest.approx(top(), rel=1e-10)
    if not (make_other is swa and stopping):  # SWA hands its average over in the last epoch only
        assert monitor.history["ntk/lambda_max"][-1] != pytest.approx(averaged, rel=1e-6)
    else:
        assert all(torch.equal(final[n], watch.at[last][n]) for n in final)


@pytest.mark.parametrize("stopping", [False, True])
def test_averaging_ends_as_it_would_without_a_monitor(stopping: bool, tmp_path: Path) -> None:
    """Also where the monitor borrows the trained weights once more at the very end."""
    states = []
    for monitors in ([], [NTKMonitor(8, every_n_steps=100)]):
        module = classifier(with_batch_norm)
        others = [Stopping()] if stopping else []
        fit(tmp_path, module, [ema(), *others, *monitors], max_epochs=9 if stopping else 2)
        states.append({n: t.clone() for n, t in module.state_dict().items()})
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_the_same_trainer_goes_on(tmp_path: Path) -> None:
    monitor, module = NTKMonitor(4, every_n_steps=4), classifier()
    run = fit(tmp_path, module, [monitor])
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())
    assert monitor.history["step"] == [0, 4, 8, 10, 12, 15]
    assert monitor.history["ntk/drift"][0] == 0.0
    assert min(monitor.history["ntk/drift"][1:]) > 0.0


def test_a_new_trainer_begins_anew(tmp_path: Path) -> None:
    """A monitor used again must not compare a new network with the old one's kernel."""
    monitor = NTKMonitor(4, every_n_steps=5)
    fit(tmp_path, classifier(), [monitor])
    first = monitor.history
    fit(tmp_path, classifier(with_batch_norm), [monitor])
    assert monitor.history["step"] == [0, 5, 10]
    assert monitor.history["ntk/drift"][0] == 0.0
    assert "ntk/buffer_drift" not in first
    assert "ntk/buffer_drift" in monitor.history
    fit(tmp_path, classifier(), [monitor])
    assert untimed(monitor.history) == untimed(first)


def test_a_run_without_batches(tmp_path: Path) -> None:
    monitor = NTKMonitor(4)
    fit(tmp_path, classifier(), [monitor], limit_train_batches=0)
    assert monitor.history == {}
    assert monitor.verdict.regime == "unknown"


def test_the_verdict_waits_for_a_step(tmp_path: Path) -> None:
    class Ends(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            assert monitor.verdict.regime == "unknown"

    monitor = NTKMonitor(4)
    fit(tmp_path, classifier(), [monitor, Ends()], max_steps=1)
    assert monitor.verdict.regime != "unknown"
