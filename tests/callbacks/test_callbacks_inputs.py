"""What is refused, what is said once, and what a run survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from lightning_runs import QUIET, Classifier, classifier, data, fit, loader, mlp, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk.callbacks import KernelDrift, KernelSpectrum, LinearizationGap, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
KINDS = [NTKMonitor, KernelDrift, KernelSpectrum, LinearizationGap]
KERNEL_KINDS = [NTKMonitor, KernelDrift, KernelSpectrum]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("probe", "64", TypeError),
        ("probe", 0, ValueError),
        ("probe", (torch.ones(3, 2), torch.ones(2)), ValueError),
        ("every_n_steps", 0, ValueError),
        ("every_n_steps", 1.5, TypeError),
        ("schedule", "sometimes", ValueError),
        ("log_figures", "no", TypeError),
        ("max_overhead", 1.5, ValueError),
        ("max_overhead", -1, ValueError),
        ("max_overhead", None, TypeError),
        ("on_error", "ignore", ValueError),
        ("on_error", None, ValueError),
        ("prefix", "", ValueError),
        ("prefix", 3, ValueError),
        ("network", nn.Linear(1, 1), TypeError),
        ("input_fn", "x", TypeError),
        ("forward_fn", "logits", TypeError),
        ("params", "weight", TypeError),
        ("params", {"weight": torch.ones(1)}, TypeError),
        ("params", [1], TypeError),
        ("batch_size", 0, ValueError),
        ("batch_size", "all", TypeError),
        ("dtype", torch.float16, ValueError),
        ("dtype", "float64", ValueError),
    ],
)
def test_bad_arguments(kind: type, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"`{name}") as caught:
        kind(**{name: value})
    assert " must be " in str(caught.value)
    assert "; got " in str(caught.value)


@pytest.mark.parametrize("kind", KERNEL_KINDS)
@pytest.mark.parametrize(("name", "value"), [("output", "diagonal"), ("method", "magic")])
def test_bad_arguments_of_the_kernel(kind: type, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be one of"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("metrics", "error"),
    [("drift", TypeError), ((), TypeError), (None, TypeError), (("drift", "loss"), ValueError)],
)
def test_bad_metrics(metrics: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`metrics` must be"):
        NTKMonitor(metrics=metrics)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_sharded_strategies(
    kind: type, strategy: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, monitor = trainer(tmp_path), kind()
    fake = object.__new__(type("Fake", (strategy,), {"__del__": lambda self: None}))
    monkeypatch.setattr(type(run), "strategy", property(lambda self: fake))
    with pytest.raises(ValueError, match=f"`strategy` must be .* while {kind.__name__} is used"):
        monitor.setup(run, classifier(), "fit")
    monitor.setup(run, classifier(), "test")  # nothing is measured there


def test_no_argument_at_all(tmp_path: Path) -> None:
    """The probe is the first batch, of which nobody asked for more than it has."""
    monitor = NTKMonitor()
    fit(tmp_path, classifier(), [monitor])
    assert {0.0, 10.0} <= set(monitor.history["step"])
    with pytest.warns(UserWarning, match="`probe` asks for 64 samples") as caught:
        fit(tmp_path, classifier(), [NTKMonitor(64)])
    assert sum("asks for" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_integers_where_the_network_takes_floats(kind: type, tmp_path: Path) -> None:
    probe = torch.arange(24).reshape(4, 6)
    with pytest.raises(TypeError, match=r"`probe` must be floating-point .*\.to\("):
        fit(tmp_path, classifier(), [kind(probe)])


def test_a_probe_of_another_float_type_and_of_another_shape(tmp_path: Path) -> None:
    x = data().tensors[0][:4].double()
    monitor = NTKMonitor(x, metrics=("drift",))
    fit(tmp_path, classifier(), [monitor])
    assert monitor.history["ntk/drift"][-1] > 0
    with pytest.raises(ValueError, match="`probe` must be a batch of inputs that the model takes"):
        fit(tmp_path, classifier(), [NTKMonitor(x[:, :3])])
    x[1, 2] = float("nan")
    with pytest.raises(ValueError, match="`probe` must be finite"):
        fit(tmp_path, classifier(), [NTKMonitor(x)])


class FromMapping(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["left"]), batch["meta"]["class"])


def mappings() -> DataLoader:
    samples = [{"left": x, "meta": {"class": y}} for x, y in data()]
    return DataLoader(samples, 8)


def test_batches_of_an_unusual_form(tmp_path: Path) -> None:
    module = classifier(kind=FromMapping)
    with pytest.raises(TypeError, match=r"keys \['left', 'meta'\].*input_fn"):
        fit(tmp_path, module, [NTKMonitor(8)], mappings())
    monitor = NTKMonitor(8, input_fn=lambda b: (b["left"], b["meta"]["class"]))
    fit(tmp_path, classifier(kind=FromMapping), [monitor], mappings())
    assert monitor.history["ntk/alignment"][-1] > 0


class NoForward(LightningModule):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()  # without parameters, so no candidate
        for name, part in parts.items():
            self.add_module(name, part)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(torch.stack([part(x) for part in self._parts()]).sum(0), y)

    def _parts(self) -> list[nn.Module]:
        return [m for n, m in self.named_children() if n != "loss"]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_only_submodule_of_a_module_without_forward(tmp_path: Path) -> None:
    monitor = NTKMonitor(6)
    fit(tmp_path, NoForward(body=mlp()), [monitor])
    assert monitor.state_dict()["observer"]["anchor"]["trained"][0] == "0.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_several_submodules(kind: type, tmp_path: Path) -> None:
    module = NoForward(one=mlp(), two=mlp())
    text = r"`network` must be named.*\['one', 'two'\].*network='"
    with pytest.raises(ValueError, match=text):
        fit(tmp_path, module, [kind(6)])
    with pytest.raises(ValueError, match=r"one of \['one', 'two'\]; got 'three'"):
        fit(tmp_path, module, [kind(6, network="three")])
    monitor = kind(6, network="two", every_n_steps=10)
    fit(tmp_path, module, [monitor])
    anchored = monitor.state_dict()["observer"]["anchor"]["params"]["0.weight"]
    assert anchored.shape == (16, 6)
    assert len(monitor.history["step"]) == 2


class Poison(Callback):
    """Makes a weight NaN after some steps, and mends it later."""

    def __init__(self, at: int, until: int) -> None:
        self.at, self.until = at, until
        self.kept: Tensor | None = None

    def on_train_batch_end(self, run: Any, module: Any, *_: Any) -> None:
        weight = module.network[0].weight.data
        if run.global_step == self.at:
            self.kept = {n: t.clone() for n, t in module.state_dict().items()}
            weight[0, 0] = float("nan")
        if run.global_step == self.until:
            module.load_state_dict(self.kept)
            for state in run.optimizers[0].state.values():
                state["momentum_buffer"].zero_()


@pytest.mark.parametrize("kind", KINDS)
def test_a_diverged_network_only_warns(kind: type, tmp_path: Path) -> None:
    """Once, also under on_error="raise"; and when the weights recover, so do the curves."""
    monitor = kind(6, every_n_steps=1)
    with pytest.warns(UserWarning, match="NaN or infinite parameters at step 4") as caught:
        fit(tmp_path, classifier(), [Poison(4, 7), monitor])
    assert sum("NaN or infinite" in str(w.message) for w in caught) == 1
    assert monitor.history["step"] == [0, 1, 2, 3, 7, 8, 9, 10]
    assert monitor.verdict.regime != "diverged"


@pytest.mark.parametrize("kind", KINDS)
def test_no_trainable_parameter(kind: type, tmp_path: Path) -> None:
    module = NoForward(body=mlp().requires_grad_(False), head=mlp())
    with pytest.raises(ValueError, match="at least one parameter that requires grad"):
        fit(tmp_path, module, [kind(6, network="body")])


def test_a_probe_of_one_class(tmp_path: Path) -> None:
    x, y = data()[:6]
    monitor = NTKMonitor((x, torch.zeros_like(y)), every_n_steps=2)
    with pytest.warns(UserWarning, match="'alignment' is not measured.*two classes") as caught:
        fit(tmp_path, classifier(), [monitor])
    assert sum("alignment" in str(w.message) for w in caught) == 1
    assert "ntk/alignment" not in monitor.history
    assert len(monitor.history["ntk/drift"]) == 6


def test_a_probe_without_targets(tmp_path: Path) -> None:
    monitor = NTKMonitor(data()[:6][0])
    with pytest.warns(UserWarning, match="'alignment' is not measured: the probe has no targets"):
        fit(tmp_path, classifier(), [monitor])
    assert "ntk/alignment" not in monitor.history


def zeros() -> nn.Module:
    """Logistic regression from zero: no parameter has a relative movement."""
    layer = nn.Linear(6, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer)


def test_what_has_no_value_is_left_out(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=2)
    with pytest.warns(UserWarning, match="'param_drift' is not measured.*all 0"):
        fit(tmp_path, classifier(zeros), [monitor])
    assert "ntk/param_drift" not in monitor.history
    assert monitor.history["ntk/drift"] == pytest.approx([0.0] * 6, abs=1e-12)
    assert monitor.history["ntk/linearization_gap"] == pytest.approx([0.0] * 6, abs=1e-12)
    assert monitor.verdict.regime == "unknown"
    assert "unless the network is linear in its parameters" in monitor.verdict.reason


class Regression(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch[0])
        return F.mse_loss(out, batch[1].reshape(out.shape))


@pytest.mark.parametrize(("outputs", "flat"), [(1, True), (1, False), (3, False)])
def test_regression_targets(outputs: int, flat: bool, tmp_path: Path) -> None:
    x = data().tensors[0]
    y = x[:, :outputs].tanh() + 0.1
    y = y.squeeze(1) if flat else y
    module = classifier(lambda: nn.Sequential(nn.Linear(6, outputs)), Regression, lr=0.05)
    monitor = NTKMonitor((x[:8], y[:8]), every_n_steps=5)
    fit(tmp_path, module, [monitor], loader(TensorDataset(x, y)))
    features = torch.cat([x[:8], torch.ones(8, 1)], 1).double()
    theta, target = features @ features.T, y[:8].double().reshape(8, -1)
    gram = target @ target.T
    expected = float((theta * gram).sum() / theta.norm() / gram.norm())
    assert monitor.history["ntk/alignment"] == pytest.approx([expected] * 3, rel=1e-10)


def test_the_retries_of_a_failing_network_follow_the_schedule(tmp_path: Path) -> None:
    class Counts(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                Counts.calls += 1
                raise RuntimeError("not today")
            return self.layer(x)

    monitor = NTKMonitor(6, every_n_steps=5, on_error="warn")
    with pytest.warns(UserWarning, match="No measurement at step 0: .*not today"):
        fit(tmp_path, classifier(Counts), [monitor])
    # At steps 0 and 5; the last step needs an anchor. After the first one parts are tried, once:
    # the submodule, and the first entry of what it returns.
    assert Counts.calls == 2 + 2
    assert monitor.history == {}


@pytest.mark.parametrize("kind", KINDS)
def test_names_tell_the_callbacks_apart(kind: type) -> None:
    assert kind(prefix="a").state_key == f"{kind.__name__}[a]"
    assert kind().history == {}
    assert str(kind().verdict).startswith("unknown: ")
