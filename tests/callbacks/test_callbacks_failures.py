"""A measurement that breaks off, at whatever point: the run is the one without a monitor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_runs import QUIET, Classifier, data, fit, untimed
from test_callbacks_identity import assert_same, outcome
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_ntk.callbacks import NTKMonitor
from torch_ntk.monitor import METRICS

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:.*lr times the largest curvature"),
    pytest.mark.filterwarnings("ignore:No measurement at step"),
    pytest.mark.filterwarnings("ignore:NTKMonitor starts at step"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists"),
]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


class Faults:
    """Which evaluation breaks off, and how; a module's own attributes would be put back."""

    calls = 0
    at = -1
    kind = "exception"

    @classmethod
    def set(cls, at: int, kind: str = "exception") -> None:
        cls.calls, cls.at, cls.kind = 0, at, kind

    @classmethod
    def happens(cls) -> bool:
        cls.calls += 1
        return cls.calls - 1 == cls.at


class NoGradient(torch.autograd.Function):
    """The identity, whose gradient cannot be taken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("no gradient today")

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise RuntimeError("no gradient today")


class Breaks(nn.Module):
    """Writes to itself; where it breaks off, it has drawn numbers and written to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(6, 8).requires_grad_(False).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(x) + self.frozen(x)).relu())
        if not self.training:
            self.kept = torch.is_grad_enabled()
            if Faults.happens():
                torch.rand(3)
                self.calls += 1
                if Faults.kind == "memory":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")
                if Faults.kind == "exception":
                    raise RuntimeError("not at this time")
                hidden = NoGradient.apply(hidden)
        return self.last(hidden)


class Surroundings(Callback):
    """Writes down what a measurement changes around the network."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        modules = list(pl_module.modules())
        self.seen.append(
            {
                "hooks": [[len(vars(m)[name]) for name in HOOKS] for m in modules],
                "attributes": [sorted(vars(m)) for m in modules],
                "kept": getattr(getattr(pl_module, "network", None), "kept", None),
                "requires": [p.requires_grad for p in pl_module.parameters()],
                "grad_mode": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
                "autocast": torch.is_autocast_enabled("cpu"),
                "loggers": [type(logger).__name__ for logger in trainer.loggers],
            }
        )


def watched(path: Path, monitors: list[Any], make: Any = Breaks, **options: Any) -> dict[str, Any]:
    around = Surroundings()
    settings = {"max_steps": 2, "max_epochs": -1, **options}
    found = outcome(path, make, Classifier, [*monitors, around], settings)
    return {**found, "around": around.seen}


def monitor(**options: Any) -> NTKMonitor:
    settings: dict[str, Any] = {
        "every_n_steps": 1,
        "metrics": (*METRICS, "stability", "module_drift"),
        "validation_probe": (data(60), range(40, 44)),
        "on_error": "warn",
    }
    return NTKMonitor(5, **{**settings, **options})


def rows(watch: NTKMonitor) -> dict[int, dict[str, Any]]:
    history = untimed(watch.history)
    return {
        int(row["ntk/batches"]): row
        for row in (
            dict(zip(history, values, strict=True))
            for values in zip(*history.values(), strict=True)
        )
        if row["ntk/batches"] is not None
    }


@pytest.mark.parametrize(("kind", "first"), [("exception", 0), ("memory", 1), ("gradient", 4)])
def test_it_may_break_off_at_any_evaluation(kind: str, first: int, tmp_path: Path) -> None:
    """Bit by bit the same run, and the later points are those of a run in which nothing broke."""
    Faults.set(-1)
    plain = watched(tmp_path, [])
    assert Faults.calls == 0
    whole = monitor()
    assert_same(plain, watched(tmp_path, [whole]))
    expected, calls = rows(whole), Faults.calls
    assert set(expected) == {0, 1, 2}
    assert calls > 30
    missed = 0
    for at in range(first, calls, 7):
        Faults.set(at, kind)
        broken = monitor()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_same(plain, watched(tmp_path, [broken]))
        said = [str(w.message) for w in caught if "No measurement at step" in str(w.message)]
        found = rows(broken)
        assert len(said) <= 1, at  # none where another way to the same numbers was taken
        left_out = {"ntk/velocity"}  # the speed since the point before
        if any("'stability' is not measured" in str(w.message) for w in caught):
            left_out |= {"ntk/stability", "ntk/stability_limit", "ntk/sharpness"}
        lost = {int(text.split()[4].rstrip(":")) for text in said}
        missed += len(lost)
        assert set(found) == set(expected) - lost, at
        if lost == {0} and "ntk/anchor_step" in found[1]:  # the anchor is the next point
            assert found[1]["ntk/drift"] == found[1]["ntk/val_drift"] == 0.0
            assert found[2]["ntk/drift"] > 0.0 < found[2]["ntk/val_drift"]
            continue
        for step, row in found.items():
            for name, value in expected[step].items():
                if name not in left_out:
                    assert row[name] == near(value), (at, step, name)
    assert missed > 2


def near(value: float | None) -> Any:
    """Ways to the same number may differ in its last digits."""
    return None if value is None else pytest.approx(value, rel=1e-8, abs=1e-12)


def test_without_warn_it_ends_the_run_and_says_why(tmp_path: Path) -> None:
    said = []
    for at in range(1, 8):
        Faults.set(at)
        try:
            watched(tmp_path, [monitor(on_error="raise")])
        except (RuntimeError, ValueError) as error:
            said.append(str(error))
    assert len(said) >= 5  # where there is another way to the same numbers it goes on
    assert all("not at this time" in text for text in said)


class Checkpointed(nn.Module):
    """The trunk's activations are computed again in the backward pass."""

    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.trunk, self.stem(x), use_reentrant=self.reentrant)
        return self.head(hidden)


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.parametrize("make", [Checkpointed, Reentrant])
def test_activation_checkpointing(make: Any, tmp_path: Path) -> None:
    """It is passed over in a measurement, and as before in the training."""
    plain = watched(tmp_path, [], make)
    monitor = NTKMonitor(5, every_n_steps=1)
    assert_same(plain, watched(tmp_path, [monitor], make))
    assert monitor.history["step"] == [0, 1, 2]
    assert monitor.history["ntk/drift"][-1] > 0


class Full(CSVLogger):
    """A disk without room for what the monitor writes."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if any(name.startswith("ntk/") for name in metrics):
            raise OSError("no space left on device")
        super().log_metrics(dict(metrics), step)


class NoImages(TensorBoardLogger):
    """Fails on each image."""

    @property
    def experiment(self) -> Any:
        own = super().experiment

        def add_image(*_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        own.add_image = add_image
        return own


@pytest.mark.parametrize("kind", [Full, NoImages])
def test_a_logger_that_fails(kind: Any, tmp_path: Path) -> None:
    """What was measured stays in the history."""
    Faults.set(-1)
    plain = watched(tmp_path, [], logger=kind(tmp_path, name="a"))
    watching = NTKMonitor(5, every_n_steps=1, on_error="warn")
    with pytest.warns(UserWarning, match="No measurement at step 0: no space left") as caught:
        found = watched(tmp_path, [watching], logger=kind(tmp_path, name="b"))
    assert sum("no space left" in str(w.message) for w in caught) == 1
    assert_same(plain, found)
    assert watching.history["step"] == [0, 1, 2]
    with pytest.raises(OSError, match="no space left"):
        watched(tmp_path, [NTKMonitor(5)], logger=kind(tmp_path, name="c"))


def test_an_interruption_within_a_measurement(tmp_path: Path) -> None:
    """Ctrl-C ends the run, and leaves the network as it was."""

    class Interrupted(Breaks):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if not self.training and Faults.calls == 14:
                raise KeyboardInterrupt
            return out

    Faults.set(-1)
    module = Classifier(Interrupted())
    watching = monitor()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, module, [watching], max_epochs=1)
    assert all(m.training for m in module.modules() if m is not module.network.frozen)
    assert not module.network.frozen.training
    assert all(len(vars(m)[name]) == 0 for m in module.modules() for name in HOOKS)
    assert module.network.calls == 0
    assert torch.is_grad_enabled()
