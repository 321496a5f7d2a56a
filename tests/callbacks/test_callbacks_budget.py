"""The default budget in a whole run, and steps that several optimizers take at their own pace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import QUIET, Classifier, TwoOptimizers, classifier, fit, loader, mlp
from torch import Tensor, nn

from torch_ntk.callbacks import NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


class Clock:
    """Stands still unless the network is used: a second a training step, and so many a look."""

    now = 0.0
    look = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now


class Timed(nn.Module):
    """Its first evaluation at each step costs what the clock says."""

    seen = -1.0

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Clock.now += 1.0
        elif Timed.seen != Clock.now:
            Clock.now += Clock.look
            Timed.seen = Clock.now
        return self.inner(x)


@pytest.mark.parametrize("look", [0.5, 3.0])
@pytest.mark.parametrize("schedule", ["linear", "log"])
def test_the_default_budget(
    look: float, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5% of the time over 200 steps, give or take a point, or ten points in five seconds."""
    Clock.now, Clock.look, Timed.seen = 0.0, look, -1.0
    monitor = NTKMonitor(4, schedule=schedule)
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, Clock.read)
    monitor._session.schedule._clock = Clock.read
    fit(tmp_path, classifier(Timed), [monitor], max_epochs=40, log_every_n_steps=1000)
    monkeypatch.undo()
    share, steps = monitor.history["ntk/overhead"], monitor.history["step"]
    assert Clock.now > 200.0
    assert share[-1] == pytest.approx(1.0 - 200.0 / Clock.now, abs=1e-9)
    assert steps[0] == 0.0
    assert steps[-1] == 200.0
    if look == 0.5:
        assert 10 <= len(steps) <= 20
        assert share[-1] <= 0.06
        return
    assert all(part <= 0.05 + 1e-9 for part in share[1:-1])
    if schedule == "linear":
        assert 0.04 <= share[-1] <= 0.06


class Adversaries(TwoOptimizers):
    """The second optimizer steps with every third batch, and no optimizer with every fourth."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        self.manual_backward(self.loss(batch))
        if batch_idx % 4 != 3:
            first.step()
        if batch_idx % 3 == 0:
            second.step()
        first.zero_grad()
        second.zero_grad()


class Accumulating(Classifier):
    """Two batches for a step, by hand."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


@pytest.mark.parametrize("kind", [Adversaries, Accumulating])
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every_n_steps": 3}, [0, 3, 6, 9, 10]),
        ({"at_steps": [1, 4, 7, 1000]}, [0, 1, 4, 7, 10]),
        ({"every_n_steps": 2, "schedule": "log"}, [0, 2, 4, 6, 8, 10]),
    ],
)
def test_optimizers_at_their_own_pace(
    kind: type[Classifier], options: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    """Each point once, on the loggers' axis, which under manual optimization counts batches."""
    monitor = NTKMonitor(4, metrics=("param_drift",), **options)
    fit(tmp_path, classifier(kind=kind), [monitor])
    assert monitor.history["step"] == steps
    assert monitor.history["ntk/batches"] == steps


@pytest.mark.parametrize(
    ("accumulated", "batches"), [(1, 5), (2, 7), (3, 5), (3, 7), (4, 7), (7, 5), (7, 7)]
)
def test_any_accumulation(accumulated: int, batches: int, tmp_path: Path) -> None:
    """The last batches of an epoch make a step of their own, however few they are."""
    monitor = NTKMonitor(4, every_n_steps=1, metrics=("param_drift",))
    x = torch.utils.data.TensorDataset(torch.randn(8 * batches, 6), torch.arange(8 * batches) % 3)
    options = {"accumulate_grad_batches": accumulated}
    run = fit(tmp_path, classifier(), [monitor], loader(x), max_epochs=3, **options)
    each = -(-batches // accumulated)
    assert run.global_step == 3 * each
    assert monitor.history["step"] == list(range(3 * each + 1))
    seen = [batches * (k // each) + accumulated * (k % each) for k in range(3 * each + 1)]
    assert monitor.history["ntk/batches"] == seen
    moved = monitor.history["ntk/param_drift"]
    assert len(set(moved)) == len(moved)  # the parameters of as many different steps


class Stream(torch.utils.data.IterableDataset[Any]):
    """Has no length."""

    def __iter__(self) -> Any:
        return iter([(torch.randn(8, 6), torch.arange(8) % 3)] * 4)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 2, "loader": Stream}, None),
        ({"max_epochs": 9, "loader": Stream, "max_steps": 7}, 7),
    ],
)
def test_the_length_of_a_run(options: dict[str, Any], length: int | None, tmp_path: Path) -> None:
    """By which a default probe follows what the budget allows."""
    monitor = NTKMonitor(4, metrics=("param_drift",))
    make = options.pop("loader", None)
    given = loader() if make is None else torch.utils.data.DataLoader(make(), batch_size=None)
    fit(tmp_path, classifier(), [monitor], given, **options)
    assert monitor._session.schedule.length == length
