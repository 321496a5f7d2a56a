"""`StabilityEdge` in a Trainer: whose learning rate, at which parameters, and what it says."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import (
    QUIET,
    Classifier,
    TwoOptimizers,
    Watch,
    classifier,
    data,
    fit,
    loader,
    untimed,
    with_batch_norm,
)
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from torch_ntk.callbacks import KernelDrift, NTKMonitor, StabilityEdge
from torch_ntk.monitor import METRICS

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
NAMES = {"ntk/stability", "ntk/stability_limit", "ntk/sharpness"}


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3))


def true_sharpness(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The Hessian of the loss in the parameters, exact for a network linear in them."""
    model = copy.deepcopy(module).double()
    start = parameters_to_vector(model.parameters()).detach()
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(v: torch.Tensor) -> torch.Tensor:
        parts = v.split([s.numel() for s in shapes])
        params = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, params, (x.double(),)), y)

    second = torch.autograd.functional.hessian(loss, start)
    vector_to_parameters(start, model.parameters())
    return float(torch.linalg.eigvalsh(second)[-1])


class Scheduled(Classifier):
    """Momentum 0.9, and a learning rate that halves with every step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_values_along_a_run(tmp_path: Path) -> None:
    x, y = data()[:12]
    edge, watch = StabilityEdge((x, y), every_n_steps=2), Watch()
    module = classifier(linear, Scheduled, lr=0.4)
    fit(tmp_path, module, [edge, watch], max_epochs=1)
    assert set(edge.history) >= NAMES
    assert edge.history["step"] == [0, 2, 4, 5]
    for k, step in enumerate((0, 2, 4, 5)):
        module.load_state_dict(watch.at[step])
        expected = true_sharpness(module.network, x, y)
        assert edge.history["ntk/sharpness"][k] == pytest.approx(expected, rel=1e-9)
        assert edge.history["ntk/stability"][k] == pytest.approx(
            0.4 * 0.5**step * expected, rel=1e-9
        )
    assert edge.history["ntk/stability_limit"] == [3.8] * 4


def test_one_warning_when_the_limit_is_passed(tmp_path: Path) -> None:
    """Also not again by a run that is resumed."""
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    edge = StabilityEdge(12, every_n_steps=1)
    module = classifier(with_batch_norm, lr=50.0)
    text = r"StabilityEdge: at step 0 lr times the largest curvature .* above 3\.8"
    with pytest.warns(UserWarning, match=text) as caught:
        fit(
            tmp_path, module, [edge, saver], loader(batch_size=12), max_steps=3,
            enable_checkpointing=True,
        )  # fmt: skip
    assert sum("curvature" in str(w.message) for w in caught) == 1
    again = StabilityEdge(12, every_n_steps=1)
    module = classifier(with_batch_norm, lr=50.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="StabilityEdge: at step")
        path = str(tmp_path / "last.ckpt")
        fit(tmp_path, module, [again], loader(batch_size=12), path, max_steps=6)
    assert again.history["ntk/stability"][:3] == edge.history["ntk/stability"][:3]


def test_calm_below_the_limit(tmp_path: Path) -> None:
    edge = StabilityEdge(8, every_n_steps=5)
    fit(tmp_path, classifier(lr=1e-3), [edge])
    assert max(edge.history["ntk/stability"]) < 2.0


class WithAdam(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3.0)


def test_adam_begins_after_its_first_step_and_gives_no_alarm(tmp_path: Path) -> None:
    edge = StabilityEdge(8, every_n_steps=1)
    fit(tmp_path, classifier(kind=WithAdam), [edge], max_epochs=1)
    values = torch.tensor(edge.history["ntk/stability"])
    assert values.isfinite().tolist() == [False, True, True, True, True, True]
    assert edge.history["ntk/stability_limit"][1] == pytest.approx(38.0)
    assert values[1] > 38.0


def test_statistics_that_were_never_trained_are_no_alarm(tmp_path: Path) -> None:
    """Inputs of size 30 under running statistics of 0 and 1, as in a fresh network."""
    x, y = data()[:12]
    for recalibrate in (True, False):
        edge = StabilityEdge((30 * x, y), recalibrate=recalibrate)
        module = classifier(with_batch_norm, lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path, module, [edge], max_steps=1)
        alarms = [w for w in caught if "largest curvature" in str(w.message)]
        assert len(alarms) == (0 if recalibrate else 1)
        assert (edge.history["ntk/stability"][0] > 3.8) != recalibrate


class WithAdamax(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adamax(self.parameters())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WithAdamax, "limit of Adamax is not known"),
        (TwoOptimizers, "2 optimizers move the network"),
    ],
)
def test_what_has_no_limit_is_said_once(kind: type, reason: str, tmp_path: Path) -> None:
    edge = StabilityEdge(8, every_n_steps=2)
    with pytest.warns(UserWarning, match=f"'stability' is not measured: .*{reason}") as caught:
        fit(tmp_path, classifier(kind=kind), [edge])
    assert sum("stability" in str(w.message) for w in caught) == 1
    assert edge.history["step"] == [0, 2, 4, 6, 8, 10]
    assert not NAMES & set(edge.history)


def test_part_of_a_network_under_one_of_two_optimizers(tmp_path: Path) -> None:
    edge = StabilityEdge((data()[:8][0], torch.arange(8) % 16), network="network.0")
    fit(tmp_path, classifier(kind=TwoOptimizers, lr=1e-3), [edge])
    assert edge.history["ntk/stability"][-1] > 0


def test_beside_the_others_and_within_the_monitor(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every_n_steps": 5}
    whole = NTKMonitor(8, prefix="all", metrics=(*METRICS, "stability"), **options)
    parts = [StabilityEdge(8, **options), KernelDrift(8, **options)]
    fit(tmp_path, classifier(lr=1e-3), [whole, *parts])
    for name in ("stability", "stability_limit", "sharpness"):
        assert whole.history[f"all/{name}"] == parts[0].history[f"ntk/{name}"]
    own = set(untimed(parts[0].history)) - NAMES
    assert own == {"step", "ntk/stability_batches"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("loss", "mse"), ("probe", 0), ("at_steps", [-1]), ("method", "magic"), ("prefix", "")],
        ("kernel", "optimizer"),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        StabilityEdge(**{name: value})


def test_critical_sharpness_of_every_step_of_a_run(tmp_path: Path) -> None:
    """Also of the last one; the run is bitwise the same."""
    x, y = data()[:12]
    batches = loader(torch.utils.data.TensorDataset(x, y), batch_size=12, shuffle=False)
    ends = []
    for watched in (True, False):
        monitor = NTKMonitor((x, y), every_n_steps=1, metrics=("critical_sharpness",))
        module = classifier(kind=WithAdamax)
        fit(tmp_path, module, [monitor] if watched else [], batches, max_epochs=6)
        ends.append([*module.state_dict().values(), torch.rand(2)])
        if watched:
            values = torch.tensor(monitor.history["ntk/critical_sharpness"])
            assert monitor.history["step"] == [0, 1, 2, 3, 4, 5, 6]
            assert values.isfinite().tolist() == [False] + 6 * [True]
            assert monitor.history["ntk/critical_sharpness_limit"][1:] == [1000.0] * 6
            assert bool((values[1:] < 1000.0).all())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
