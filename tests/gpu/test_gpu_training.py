"""The monitor during training on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traces import settings

from torch_ntk.monitor import METRICS, Monitor


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )  # fmt: skip


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(8, 8, 1, 6, 6, generator=generator)
    return [(b, b[:, 0, 0, :3].argmax(1)) for b in x]


def train(device: torch.device, monitor: Monitor | None, dropout: bool = True) -> nn.Module:
    model = network()
    if not dropout:
        model[3] = nn.Identity()  # type: ignore[index, operator]
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(0)
    for x, y in batches():
        batch = (x.to(device), y.to(device))
        if monitor is not None:
            monitor.step(model, optimizer, batch)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_training_is_the_same(gpu: torch.device) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        plain, states = train(gpu, None), [settings()]
        monitor = Monitor(8, every_n_steps=1, metrics=(*METRICS, "stability"))
        watched = train(gpu, monitor)
        states.append(settings())
    finally:
        torch.use_deterministic_algorithms(False)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert states[0] == states[1]
    assert len(monitor.history["step"]) == 8


def test_measures_what_a_cpu_measures(gpu: torch.device) -> None:
    found = []
    for device in (torch.device("cpu"), gpu):
        monitor = Monitor(8, every_n_steps=1, metrics=(*METRICS, "stability"))
        train(device, monitor, dropout=False)
        found.append(monitor.history)
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        if name.endswith(("seconds", "overhead", "numerical_rank", "noise_floor")):
            continue
        for step, (a, b) in enumerate(zip(values, found[1][name], strict=True)):
            assert a == pytest.approx(b, rel=2e-3, abs=1e-4, nan_ok=True), (name, step)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_on_a_gpu(precision: str, tmp_path: Path, gpu: torch.device) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))
    from lightning_runs import classifier, fit, with_batch_norm

    from torch_ntk.callbacks import LossForecast, NTKMonitor

    options: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "precision": precision}
    weights = []
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(8, 6, generator=generator), torch.arange(8) % 3
    monitor = NTKMonitor(8, every_n_steps=2, metrics=(*METRICS, "stability", "infinite_gap"))
    forecaster = LossForecast(probe, every_n_steps=2)
    for watchers in ([], [monitor, forecaster]):
        module = classifier(with_batch_norm)
        fit(tmp_path, module, watchers, **options)
        weights.append(module.state_dict())
    for name, a in weights[0].items():
        assert torch.equal(a, weights[1][name]), name
    assert monitor.history["step"] == [0, 2, 4, 6, 8, 10]
    assert monitor.verdict
    assert forecaster.history["step"][0] == 0
