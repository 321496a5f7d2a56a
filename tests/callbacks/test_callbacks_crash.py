"""Runs that end in an exception, at every place there is, and what a checkpoint weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import QUIET, Classifier, classifier, data, fit, with_batch_norm
from test_callbacks_resume import batches, curves
from torch import Tensor, nn

from torch_ntk.callbacks import LossForecast, NTKMonitor
from torch_ntk.monitor import METRICS

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:.*lr times the largest curvature"),
    pytest.mark.filterwarnings("ignore:LossForecast predicts a training on its probe"),
]


class PowerCut(RuntimeError):
    pass


class Crash(Callback):
    """Ends the run in batch `at`, within a hook of that name."""

    def __init__(self, at: int, hook: str) -> None:
        self.at = at
        setattr(self, hook, self._maybe)

    def _maybe(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.at + 1:
            raise PowerCut


def without_noise() -> nn.Module:
    """A resumed process draws other random numbers."""
    network = with_batch_norm()
    network[3] = nn.Identity()  # type: ignore[index, operator]
    return network


def monitors() -> list[Any]:
    every = (*METRICS, "stability", "module_drift")
    return [
        NTKMonitor(
            6, validation_probe=(data(60), range(40, 44)), every_n_steps=2, metrics=every,
        ),
        LossForecast((data(8)[:][0], data(8)[:][1]), every_n_steps=3),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, dict[str, float]]]:
    """The curves of a run of two epochs of five batches in which nothing happens."""
    found = monitors()
    path = tmp_path_factory.mktemp("whole")
    fit(path, classifier(without_noise), found, batches(), max_epochs=2)
    return [curves(m) for m in found]


# Steps that are measured and not, and those around the end of the first epoch of five batches.
@pytest.mark.parametrize(
    ("at", "hook"),
    [
        *((at, "on_train_batch_end") for at in (1, 4, 5, 8)),
        *((at, "on_before_optimizer_step") for at in (3, 5, 6)),
    ],
)
def test_a_crash_at_any_step(
    at: int, hook: str, whole: list[dict[int, dict[str, float]]], tmp_path: Path
) -> None:
    """Resumed from `last.ckpt`, the curves are those of the whole run, bit by bit."""
    first = monitors()
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    with pytest.raises(PowerCut):
        fit(
            tmp_path,
            classifier(without_noise),
            [*first, Crash(at, hook), saver],
            batches(),
            max_epochs=2,
            enable_checkpointing=True,
        )
    assert first[0].history["step"][-1] <= at
    rest, module = monitors(), classifier(without_noise)
    nn.init.zeros_(module.network[0].weight)
    fit(tmp_path, module, rest, batches(), str(tmp_path / "last.ckpt"), max_epochs=2)
    assert [curves(m) for m in rest] == whole


def numbers(state: Any) -> int:
    """Bytes of the tensors, and eight for each number."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(numbers(v) for v in state.values())
    if isinstance(state, (list, tuple)):
        return sum(numbers(v) for v in state)
    return 8 if isinstance(state, (int, float)) else 0


class Wide(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 700), nn.BatchNorm1d(700), nn.Tanh(), nn.Linear(700, 3))


@pytest.mark.parametrize("theta_0", ["inside", "beside"])
@pytest.mark.parametrize("points", [2, 11])
def test_what_a_checkpoint_weighs(theta_0: str, points: int, tmp_path: Path) -> None:
    """θ_0, buffers, probe, its outputs, two kernels; for each point a spectrum, a row and a map.

    Maps and the outputs of the last linearization are kept in single precision.
    """
    n = 12
    monitor = NTKMonitor(n, every_n_steps=10 // (points - 1), theta_0=theta_0)
    saver = ModelCheckpoint(tmp_path, save_last=True)
    module = classifier(Wide, Classifier)
    batch = torch.utils.data.DataLoader(data(), n)
    run: dict[str, Any] = {"enable_checkpointing": True, "max_steps": 10, "max_epochs": -1}
    fit(tmp_path, module, [monitor, saver], batch, **run)
    assert len(monitor.history["step"]) == points
    size = numbers(monitor.state_dict())
    model = numbers(dict(module.named_parameters()))
    buffers = numbers(dict(module.named_buffers()))
    probe = n * 6 * 4 + n * 8
    linearization = n * 3 * (4 + 4 + 8) + 16
    fixed = buffers + probe + n * 3 * 8 + 2 * n * n * 8 + linearization
    each = 8 * (n + len(monitor.history) + 3) + n * n * 4
    parameters = model if theta_0 == "inside" else 0
    assert parameters + fixed < size < parameters + fixed + each * points + 256
    grown = (tmp_path / "last.ckpt").stat().st_size
    assert (grown > 2 * model + size) is True  # weights, momentum and this
