"""Training with the monitor is bitwise the training without it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning_runs import (
    QUIET,
    Classifier,
    TwoOptimizers,
    classifier,
    fit,
    loader,
    mlp,
    with_batch_norm,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_ntk.callbacks import (
    KernelDrift,
    KernelSpectrum,
    LinearizationGap,
    NTKMonitor,
    StabilityEdge,
)

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
]


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=False))


class Fails(nn.Module):
    """Spends random numbers, writes to a buffer, and fails on what only a measurement passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
            self.calls += 1
            raise RuntimeError("no evaluation today")
        return self.layer(x)


class FrozenNorm(nn.Module):
    """A batch normalization that the user keeps in eval mode within a training network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.norm.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.layer(x)).relu())


class LogsInForward(Classifier):
    """Logs from within its forward, which a measurement passes too."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.log("in_forward", out.detach().square().mean(), on_epoch=True, on_step=False)
        return out


class LogsDirectly(Classifier):
    """Writes to the loggers themselves from within its forward."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        size = float(out.detach().square().mean())
        self.written = getattr(self, "written", 0) + 1
        for logger in self.loggers:
            logger.log_metrics({"direct": size}, step=self.written)
        if self.logger is not None:
            self.logger.experiment.log_metrics({"experiment": size}, step=self.written)
        if self.kept is not None:
            self.kept.log_metrics({"kept": size}, step=self.written)
        return out

    kept: Any = None


def compiled() -> nn.Module:
    return torch.compile(with_batch_norm(), backend="eager")  # type: ignore[return-value]


def spectral_norm() -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))


class Ledger(Callback):
    """Writes down everything that the monitor could have touched."""

    def __init__(self) -> None:
        self.grads: list[Any] = []
        self.flags: list[list[bool]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.grads.append([None if p.grad is None else p.grad.clone() for p in _params(pl_module)])
        self.flags.append([m.training for m in pl_module.modules()])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = {k: v for k, v in trainer.callback_metrics.items() if "/" not in k}
        self.metrics.append({k: float(v) for k, v in own.items()})


def _params(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())


def outcome(
    path: Path,
    make: Callable[[], nn.Module],
    kind: type[Classifier],
    others: Sequence[Callback],
    options: dict[str, Any],
) -> dict[str, Any]:
    module, ledger = classifier(make, kind), Ledger()
    run = fit(path, module, [*others, ledger], **options)
    return {
        "weights": dict(module.state_dict()),
        "optimizers": [o.state_dict() for o in run.optimizers],
        "grads": ledger.grads,
        "flags": ledger.flags,
        "metrics": ledger.metrics,
        "batches": module.seen,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "generators": torch.rand(2),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        if a.is_floating_point():  # an overflow leaves NaN on both sides
            assert torch.equal(a.isnan(), b.isnan()), where
            a, b = a.nan_to_num(), b.nan_to_num()
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for k, (v, w) in enumerate(zip(a, b, strict=True)):
            assert_same(v, w, f"{where}[{k}]")
    else:
        assert a == b or (a != a and b != b), where


def ema() -> Callback:
    return EMAWeightAveraging(decay=0.5)


def swa() -> Callback:
    return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)


RUNS: dict[str, tuple[Callable[[], nn.Module], type[Classifier], dict[str, Any]]] = {
    "batch_norm_and_dropout": (with_batch_norm, Classifier, {}),
    "accumulation_and_clipping": (
        with_batch_norm,
        Classifier,
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
    ),
    "bf16_mixed": (with_batch_norm, Classifier, {"precision": "bf16-mixed"}),
    "bf16_true": (mlp, Classifier, {"precision": "bf16-true"}),
    "float64": (mlp, Classifier, {"precision": "64-true"}),
    "two_optimizers": (mlp, TwoOptimizers, {}),
    "compiled": (compiled, Classifier, {}),
    "spectral_norm": (spectral_norm, Classifier, {}),
    "frozen_norm": (FrozenNorm, Classifier, {}),
    "logs_in_forward": (with_batch_norm, LogsInForward, {}),
    "deterministic_and_validation": (
        with_batch_norm,
        Classifier,
        {"deterministic": True, "val_check_interval": 2},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_bitwise_the_same_run(name: str, tmp_path: Path) -> None:
    make, kind, options = RUNS[name]
    monitor = NTKMonitor(8, every_n_steps=1)
    try:
        plain = outcome(tmp_path, make, kind, [], options)
        watched = outcome(tmp_path, make, kind, [monitor], options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(plain, watched)
    assert len(monitor.history["step"]) > 3


@pytest.mark.filterwarnings("ignore:StabilityEdge. at step")
@pytest.mark.parametrize("kind", [KernelDrift, KernelSpectrum, LinearizationGap, StabilityEdge])
def test_the_parts_leave_no_trace_either(kind: type, tmp_path: Path) -> None:
    plain = outcome(tmp_path, with_batch_norm, Classifier, [], {})
    watched = outcome(tmp_path, with_batch_norm, Classifier, [kind(8, every_n_steps=1)], {})
    assert_same(plain, watched)


@pytest.mark.parametrize("first", [True, False], ids=["monitor_first", "monitor_last"])
@pytest.mark.parametrize("make_other", [WeightAveraging, ema, swa])
def test_with_averaged_weights(
    make_other: Callable[[], Callback], first: bool, tmp_path: Path
) -> None:
    make, options = with_batch_norm, {"max_epochs": 3}
    plain = outcome(tmp_path, make, Classifier, [make_other()], options)
    monitor = NTKMonitor(8, every_n_steps=2)
    pair = [monitor, make_other()] if first else [make_other(), monitor]
    assert_same(plain, outcome(tmp_path, make, Classifier, pair, options))
    assert monitor.history["step"] == [0, 2, 4, 6, 8, 10, 12, 14, 15]


@pytest.mark.parametrize(("make", "reason"), [(Fails, "no evaluation today")])
def test_a_failing_measurement(make: Any, reason: str, tmp_path: Path) -> None:
    """A measurement that fails half-way is said once and leaves the run as it would have been."""
    plain = outcome(tmp_path, make, Classifier, [], {})
    monitor = NTKMonitor(8, every_n_steps=1, on_error="warn")
    with pytest.warns(UserWarning, match="No measurement at step 0") as caught:
        watched = outcome(tmp_path, make, Classifier, [monitor], {})
    ours = [str(w.message) for w in caught if "No measurement" in str(w.message)]
    assert len(ours) == 1
    assert reason in ours[0]
    assert_same(plain, watched)
    assert monitor.history == {}

    with pytest.raises(ValueError, match=reason):
        outcome(tmp_path, make, Classifier, [NTKMonitor(8)], {})


def test_gradients_of_a_half_accumulated_batch(tmp_path: Path) -> None:
    """A first measurement in the middle of an accumulation leaves what has been summed up."""

    class Late(NTKMonitor):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, idx: int) -> None:
            if idx >= 1:
                super().on_train_batch_start(trainer, pl_module, batch, idx)

    options = {"accumulate_grad_batches": 4}
    plain = outcome(tmp_path, mlp, Classifier, [], options)
    watched = outcome(tmp_path, mlp, Classifier, [Late(8, every_n_steps=1)], options)
    assert any(g is not None for g in watched["grads"][1])
    assert_same(plain, watched)


def test_the_probe_costs_no_batch(tmp_path: Path) -> None:
    """The samples are those of the first training batch, in the shuffled order of the run."""
    module, monitor = classifier(), NTKMonitor(8)
    fit(tmp_path, module, [monitor], loader())
    probe = monitor.state_dict()["observer"]["anchor"]
    assert torch.equal(probe["y"], module.seen[0])
