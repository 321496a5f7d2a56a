"""What the callbacks record, against the same numbers from autograd loops in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_runs import LIGHTNING_SAYS, Watch, classifier, fit, loader, mlp, with_batch_norm
from oracles import jacobian_loop, ntk_loop, reduced
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torch_ntk.callbacks import (
    KernelDrift,
    KernelSpectrum,
    LinearizationGap,
    NTKMonitor,
)

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]
CLOCKS = ("seconds", "overhead", "batches")
CALLBACKS = [NTKMonitor, KernelDrift, KernelSpectrum, LinearizationGap]


def frozen() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    network[0].requires_grad_(False)
    return network


class Tokens(nn.Module):
    """Token indices; the embedding is used again, transposed, in front of the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x).mean(1).tanh()
        return self.out(hidden @ self.embedding.weight.T)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).tanh()).tanh())


def weight_norm() -> nn.Module:
    """An operation without a forward-mode derivative."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3))


class EmbeddingBag(nn.Module):
    """An operation with neither a forward-mode nor a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bag(x).tanh())


class StopsGradient(nn.Module):
    """A forward whose gradient forward-mode differentiation would not stop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.layer(x)
        return self.out(self.layer(x) * gate)


def token_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(7, (40, 4), generator=generator)
    return TensorDataset(x, x.sum(1) % 3)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "batch_norm": with_batch_norm,
    "frozen": frozen,
    "tokens": Tokens,
    "tied": Tied,
    "weight_norm": weight_norm,
    "embedding_bag": EmbeddingBag,
    "stops_gradient": StopsGradient,
}


def split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's part of a LightningModule's state, in float64."""
    return {
        n.removeprefix("network."): t.double() if t.is_floating_point() else t
        for n, t in state.items()
    }


class Oracle:
    """Every metric from Jacobians by one backward pass per sample and output."""

    def __init__(self, network: nn.Module, start: dict[str, Tensor], x: Tensor, y: Tensor) -> None:
        self.network = copy.deepcopy(network).double()
        self.trained = [n for n, p in network.named_parameters() if p.requires_grad]
        self.start, self.y = split(start), y
        self.x = x.double() if x.is_floating_point() else x
        self.theta_0 = self.kernel(self.start)
        self.f_0 = self.outputs(self.start)
        self.jacobian_0 = jacobian_loop(self.at(self.start), self.x, self.trained)

    def at(self, state: dict[str, Tensor]) -> nn.Module:
        self.network.load_state_dict(state)
        return self.network.eval()

    @torch.no_grad()
    def outputs(self, state: dict[str, Tensor]) -> Tensor:
        return self.at(state)(self.x)

    def kernel(self, state: dict[str, Tensor]) -> Tensor:
        return reduced(ntk_loop(self.at(state), self.x, self.x, self.trained), "mean")

    def moved(self, state: dict[str, Tensor]) -> Tensor:
        return torch.cat([(state[n] - self.start[n]).reshape(-1) for n in self.trained])

    def __call__(self, raw: dict[str, Tensor]) -> dict[str, float]:
        state = split(raw)
        theta, f = self.kernel(state), self.outputs(state)
        values = torch.linalg.eigvalsh(theta)
        weights = values.clamp(min=0) / values.clamp(min=0).sum()
        onehot = torch.eye(3, dtype=torch.float64)[self.y] - 1 / 3
        gram = onehot @ onehot.T
        linear = self.f_0 + self.jacobian_0 @ self.moved(state)
        size_0 = torch.cat([self.start[n].reshape(-1) for n in self.trained]).norm()
        change = (f - self.f_0).norm()
        return {
            "drift": float((theta - self.theta_0).norm() / self.theta_0.norm()),
            "lambda_min": float(values[0]),
            "lambda_max": float(values[-1]),
            "condition": float(values[-1] / values[0]),
            "effective_rank": math.exp(-float((weights * weights.log()).nansum())),
            "alignment": float((theta * gram).sum() / theta.norm() / gram.norm()),
            "param_drift": float(self.moved(state).norm() / size_0),
            "linearization_gap": float((f - linear).norm() / change) if change > 0 else 0.0,
        }


@pytest.mark.parametrize("name", NETWORKS)
def test_every_metric_at_every_step(name: str, tmp_path: Path) -> None:
    batches = loader(token_data()) if name in ("tokens", "embedding_bag") else None
    module, watch = classifier(NETWORKS[name], lr=0.1), Watch()
    untouched = copy.deepcopy(module.network)
    x, y = next(iter(batches or loader()))
    monitor = NTKMonitor((x[:6], y[:6]), every_n_steps=3, recalibrate=False)
    with pytest.warns(UserWarning, match="no logger"):
        fit(tmp_path, module, [watch, monitor], batches)

    assert monitor.history["step"] == [0, 3, 6, 9, 10]
    oracle = Oracle(untouched, watch.at[0], x[:6], y[:6])
    for k, step in enumerate(monitor.history["step"]):
        expected = oracle(watch.at[int(step)])
        for metric, value in expected.items():
            # λ_min and what depends on it carry the rounding of the largest eigenvalue.
            tolerance = 1e-6 if metric in ("lambda_min", "condition") else 1e-10
            got = monitor.history[f"ntk/{metric}"][k]
            assert got == pytest.approx(value, rel=tolerance, abs=1e-12), (metric, step)
    assert monitor.history["ntk/drift"][-1] > 1e-3  # there was something to measure
    assert monitor.history["ntk/linearization_gap"][-1] > 1e-3


def test_the_parts_agree_with_the_whole(tmp_path: Path) -> None:
    """Each small callback records what `NTKMonitor` records under the same names."""
    whole = NTKMonitor(6, every_n_steps=2, prefix="all")
    parts = [kind(6, every_n_steps=2) for kind in CALLBACKS[1:]]
    with pytest.warns(UserWarning, match="no logger"):
        fit(tmp_path, classifier(with_batch_norm), [whole, *parts])
    seen: set[str] = set()
    for part in parts:
        names = [n for n in part.history if n != "step" and not n.endswith(CLOCKS)]
        for name in names:
            expected = whole.history[name.replace("ntk/", "all/")]
            assert part.history[name] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert not seen & set(names)
        seen |= set(names)
    every = {n.replace("all/", "ntk/") for n in whole.history}
    assert seen == every - {"step", "ntk/alignment", *(f"ntk/{n}" for n in CLOCKS)}


def test_the_plot_and_the_verdict(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=2)
    with pytest.raises(ValueError, match="at least one measurement"):
        monitor.plot()
    with pytest.warns(UserWarning, match="no logger"):
        fit(tmp_path, classifier(), [monitor])
    figure, axes = monitor.plot()
    drift = axes[0].get_lines()[0]
    assert drift.get_xdata().tolist() == monitor.history["step"]
    assert drift.get_ydata().tolist() == monitor.history["ntk/drift"]
    assert monitor.verdict.regime in figure.get_suptitle()


def test_buffer_drift_is_the_movement_of_running_statistics(tmp_path: Path) -> None:
    options: dict[str, Any] = {"metrics": ("param_drift",), "recalibrate": False}
    monitor, watch = NTKMonitor(6, every_n_steps=5, **options), Watch()
    with pytest.warns(UserWarning, match="no logger"):
        fit(tmp_path, classifier(with_batch_norm), [watch, monitor])

    def statistics(step: int) -> Tensor:
        names = ("network.1.running_mean", "network.1.running_var")
        return torch.cat([watch.at[step][n].double() for n in names])

    for k, step in enumerate((0, 5, 10)):
        moved = (statistics(step) - statistics(0)).norm() / statistics(0).norm()
        assert monitor.history["ntk/buffer_drift"][k] == pytest.approx(float(moved), rel=1e-12)


@pytest.mark.parametrize("output", ["mean", "trace", "pseudo", "full"])
def test_output_reductions(output: str, tmp_path: Path) -> None:
    module, watch = classifier(), Watch()
    x, y = next(iter(loader(shuffle=False)))
    monitor = NTKMonitor((x, y), every_n_steps=5, output=output, metrics=("drift", "lambda_max"))
    untouched = copy.deepcopy(module.network).double()
    with pytest.warns(UserWarning, match="no logger"):
        fit(tmp_path, module, [watch, monitor])
    kernels = []
    for step in (0, 5, 10):
        untouched.load_state_dict(split(watch.at[step]))
        kernels.append(reduced(ntk_loop(untouched, x.double(), x.double()), output))
    for k, theta in enumerate(kernels):
        drift = float((theta - kernels[0]).norm() / kernels[0].norm())
        square = theta.permute(0, 2, 1, 3).reshape(24, 24) if output == "full" else theta
        top = float(torch.linalg.eigvalsh(square)[-1])
        assert monitor.history["ntk/drift"][k] == pytest.approx(drift, rel=1e-10, abs=1e-12)
        assert monitor.history["ntk/lambda_max"][k] == pytest.approx(top, rel=1e-10)


def test_a_layer_unfrozen_later_moves_the_linearization_but_not_the_kernel(tmp_path: Path) -> None:
    """Θ stays the kernel of what was trained at the anchor; f_t^lin follows all that moves."""
    module, watch = classifier(frozen), Watch()
    untouched = copy.deepcopy(module.network)
    x, y = next(iter(loader(shuffle=False)))
    monitor = NTKMonitor((x, y), every_n_steps=10)
    unfrozen = pytest.warns(UserWarning, match="frozen at step 0.*The kernel does not contain them")
    with pytest.warns(UserWarning, match="no logger"), unfrozen:
        fit(tmp_path, module, [Thaw(), watch, monitor])
    oracle = Oracle(untouched, watch.at[0], x, y)
    expected = oracle(watch.at[10])
    assert monitor.history["ntk/drift"][-1] == pytest.approx(expected["drift"], rel=1e-10)
    assert monitor.history["ntk/param_drift"][-1] == pytest.approx(expected["param_drift"])

    everything = [n for n, _ in untouched.named_parameters()]
    start, end = split(watch.at[0]), split(watch.at[10])
    delta = torch.cat([(end[n] - start[n]).reshape(-1) for n in everything])
    linear = oracle.f_0 + jacobian_loop(oracle.at(start), oracle.x, everything) @ delta
    f = oracle.outputs(end)
    gap = float((f - linear).norm() / (f - oracle.f_0).norm())
    assert monitor.history["ntk/linearization_gap"][-1] == pytest.approx(gap, rel=1e-10)


class Thaw(Callback):
    """Unfreezes the first layer after the first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.network[0].requires_grad_(True)  # the optimizer has it already


def test_selected_parameters(tmp_path: Path) -> None:
    x, y = next(iter(loader(shuffle=False)))
    module = classifier()
    untouched = copy.deepcopy(module.network).double()
    names = ["network.2.weight", "network.2.bias"]
    monitor = NTKMonitor((x, y), every_n_steps=100, params=names, metrics=("lambda_max",))
    with pytest.warns(UserWarning, match="no logger"):
        fit(tmp_path, module, [monitor])
    theta = reduced(ntk_loop(untouched, x.double(), x.double(), ["2.weight", "2.bias"]), "mean")
    top = float(torch.linalg.eigvalsh(theta)[-1])
    assert monitor.history["ntk/lambda_max"][0] == pytest.approx(top, rel=1e-10)


def test_other_callbacks_watch_what_is_measured(tmp_path: Path) -> None:
    """Also one that stands before the monitor and looks at the end of an epoch."""
    stop = EarlyStopping(
        "ntk/param_drift", mode="max", stopping_threshold=0.05, check_on_train_epoch_end=True
    )
    best = ModelCheckpoint(tmp_path, monitor="ntk/drift", mode="max", every_n_train_steps=1)
    monitor = NTKMonitor(6, every_n_steps=1)
    logger = CSVLogger(tmp_path)
    options: dict[str, Any] = {"max_epochs": 50, "enable_checkpointing": True, "logger": logger}
    run = fit(tmp_path, classifier(lr=0.01), [stop, monitor, best], **options)
    moved, drift = (monitor.history[f"ntk/{name}"] for name in ("param_drift", "drift"))
    assert 5 < run.global_step < 250
    assert moved[-1] > 0.05 > moved[-7]  # it stopped at the first epoch that ended beyond
    assert float(best.best_model_score) == pytest.approx(max(drift[:-1]), rel=1e-6)
