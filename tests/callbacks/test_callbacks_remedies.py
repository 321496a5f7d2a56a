"""Modules that are not one plain function of one tensor, and what errors say about them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import QUIET, Classifier, classifier, data, fit, loader, mlp, trainer, untimed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk.callbacks import KernelDrift, KernelSpectrum, LinearizationGap, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
KINDS = [NTKMonitor, KernelDrift, KernelSpectrum, LinearizationGap]


class ReturnsDict(Classifier):
    """Its forward takes a keyword and returns a dict, and logs as it goes."""

    def forward(self, *, inputs: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = self.network(inputs)
        self.log("forwards", float(len(inputs)), on_epoch=True)
        return {"logits": logits, "energy": logits.logsumexp(1)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(inputs=batch[0])["logits"], batch[1])


def logits(net: nn.Module, x: Tensor) -> Tensor:
    return net(inputs=x)["logits"]


def without_time(monitor: Any) -> dict[str, list[float | None]]:
    return untimed(monitor.history)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_fn_measures_what_a_plain_forward_would(kind: type, tmp_path: Path) -> None:
    plain, adapted = kind(6, every_n_steps=2), kind(6, every_n_steps=2, forward_fn=logits)
    fit(tmp_path, classifier(), [plain])
    module = classifier(kind=ReturnsDict)
    run = fit(tmp_path, module, [adapted])
    expected, got = without_time(plain), without_time(adapted)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        start = values.count(None)  # what the first measurement cannot know
        assert got[name][start:] == pytest.approx(values[start:], rel=1e-9, abs=1e-12)
    assert run.callback_metrics["forwards"] == 8  # nothing of the 6 samples of the probe
    assert set(module.state_dict()) == set(classifier().state_dict())


def test_forward_fn_leaves_training_as_it_is(tmp_path: Path) -> None:
    watched, alone = classifier(kind=ReturnsDict), classifier(kind=ReturnsDict)
    fit(tmp_path, watched, [NTKMonitor(6, every_n_steps=1, forward_fn=logits)])
    fit(tmp_path, alone)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(watched.state_dict()[name], tensor)


def test_forward_fn_with_network_and_params(tmp_path: Path) -> None:
    monitor = NTKMonitor(
        6,
        every_n_steps=5,
        metrics=("drift", "linearization_gap"),
        network="network",
        params=["2.weight"],
        forward_fn=lambda net, x: net(x)[:, :2],
    )
    fit(tmp_path, classifier(), [monitor])
    anchor = monitor.state_dict()["observer"]["anchor"]
    assert anchor["outputs"].shape == (6, 2)
    assert anchor["trained"] == ["network.2.weight"]
    by_predicate = NTKMonitor(
        6,
        every_n_steps=5,
        metrics=("drift", "linearization_gap"),
        network="network",
        params=lambda name, _: name == "2.weight",
        forward_fn=lambda net, x: net(x)[:, :2],
    )
    fit(tmp_path, classifier(), [by_predicate])
    assert without_time(by_predicate) == without_time(monitor)


def test_forward_fn_of_a_compiled_network(tmp_path: Path) -> None:
    def doubled(net: nn.Module, x: Tensor) -> Tensor:
        return 2 * net(x)

    options: dict[str, Any] = {"every_n_steps": 5, "network": "network", "forward_fn": doubled}
    plain, compiled = NTKMonitor(6, **options), NTKMonitor(6, **options)
    fit(tmp_path, classifier(), [plain])
    fit(tmp_path, classifier(lambda: torch.compile(mlp(), backend="eager")), [compiled])
    assert compiled.state_dict()["observer"]["anchor"]["trained"][0] == "network.0.weight"
    drift = compiled.history["ntk/drift"]
    assert drift == pytest.approx(plain.history["ntk/drift"], rel=1e-4)


def test_forward_fn_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = NTKMonitor(6, every_n_steps=1, forward_fn=logits)
    fit(tmp_path, classifier(kind=ReturnsDict), [whole], loader(shuffle=False), max_epochs=4)
    saved = ModelCheckpoint(tmp_path / "kept", save_last=True)
    half = NTKMonitor(6, every_n_steps=1, forward_fn=logits)
    options: dict[str, Any] = {"enable_checkpointing": True}
    module = classifier(kind=ReturnsDict)
    fit(tmp_path, module, [half, saved], loader(shuffle=False), max_epochs=2, **options)
    rest = NTKMonitor(6, every_n_steps=1, forward_fn=logits)
    path = str(tmp_path / "kept" / "last.ckpt")
    module = classifier(kind=ReturnsDict)
    fit(tmp_path, module, [rest], loader(shuffle=False), ckpt_path=path, max_epochs=4)
    assert without_time(rest) == without_time(whole)


class Tokens(nn.Module):
    """Integer inputs by keyword, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(input_ids) * mask.unsqueeze(-1)
        return {"logits": self.head(hidden.mean(1).tanh())}


class Language(Classifier):
    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return self.network(input_ids=input_ids, mask=mask)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch["input_ids"], (batch["input_ids"] > 0).float())
        return F.cross_entropy(out["logits"], batch["labels"])


def test_forward_fn_of_tokens(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 10, (40, 5), generator=generator)
    samples = [{"input_ids": t, "labels": t[0] % 3} for t in tokens]
    monitor = NTKMonitor(
        8, forward_fn=lambda net, x: net(input_ids=x, mask=(x > 0).float())["logits"]
    )
    fit(tmp_path, classifier(Tokens, Language), [monitor], DataLoader(samples, 8))
    assert monitor.history["ntk/drift"][-1] > 0
    assert monitor.history["ntk/alignment"][-1] > 0


class Pairs(LightningModule):
    """Several submodules, no forward: what it computes only a function can say."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(), mlp()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.left(x) + self.right(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_forward_fn_of_a_module_without_forward(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, forward_fn=lambda net, x: net.left(x) + net.right(x))
    fit(tmp_path, Pairs(), [monitor])
    trained = monitor.state_dict()["observer"]["anchor"]["trained"]
    assert len(trained) == 8
    assert monitor.history["ntk/linearization_gap"][-1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_first_measurement_name_callback_and_remedies(
    kind: type, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        fit(tmp_path, classifier(kind=ReturnsDict), [kind(6)])
    text = str(caught.value)
    assert text.startswith(f"{kind.__name__} cannot measure ReturnsDict: ")
    assert " Pass forward_fn=lambda net, x: net.network(x), which measures that part. " in text
    assert text.endswith("on_error='warn' trains on without measurements.")
    cause = caught.value.__cause__
    assert type(cause) is type(caught.value)
    assert str(cause) in text


def test_errors_without_a_part_that_works_list_what_may_help(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NTKMonitor cannot measure Classifier: ") as caught:
        fit(tmp_path, classifier(), [NTKMonitor(torch.randn(4, 5))])
    text = str(caught.value)
    for remedy in ("network='...', one of ['network']", "forward_fn=", "input_fn=", "probe="):
        assert remedy in text
    assert text.endswith("on_error='warn' trains on without measurements.")


def test_each_remedy_works(tmp_path: Path) -> None:
    for options in ({"network": "network"}, {"forward_fn": logits}):
        monitor = NTKMonitor(6, **options)  # type: ignore[arg-type]
        fit(tmp_path, classifier(kind=ReturnsDict), [monitor])
        assert monitor.history["ntk/drift"][-1] > 0
    with pytest.warns(UserWarning, match="No measurement at step 0: NTKMonitor cannot measure"):
        fit(tmp_path, classifier(kind=ReturnsDict), [NTKMonitor(6, on_error="warn")])


# ------------------------------------------------------------------ another model
def test_another_model_begins_anew(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5)
    first = classifier()
    run = trainer(tmp_path, [monitor])
    run.fit(first, loader())
    run.fit_loop.max_epochs = 4
    torch.manual_seed(77)
    second = Classifier(mlp())
    start = second.network[0].weight.detach().clone()
    with pytest.warns(UserWarning, match="NTKMonitor starts at step 10"):
        run.fit(second, loader())
    anchor = monitor.state_dict()["observer"]["anchor"]
    assert torch.equal(anchor["params"]["network.0.weight"], start)
    assert monitor.history["step"] == [10, 15, 20]
    run.fit_loop.max_epochs = 6
    run.fit(second, loader())  # the same one again: it goes on
    assert monitor.history["step"] == [10, 15, 20, 25, 30]


def test_a_callback_that_has_run_can_be_pickled(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5, forward_fn=logits)
    fit(tmp_path, classifier(kind=ReturnsDict), [monitor])
    assert without_time(pickle.loads(pickle.dumps(monitor))) == without_time(monitor)


# ------------------------------------------------------------------ verdicts
def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def test_a_learning_rate_of_zero(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5)
    fit(tmp_path, classifier(lr=0.0), [monitor])
    assert monitor.verdict.regime == "unknown"
    assert "nothing has moved yet: " in monitor.verdict.reason
    running = NTKMonitor(6, every_n_steps=5, recalibrate=False)
    fit(tmp_path, classifier(norm_net, lr=0.0), [running])
    assert running.history["ntk/param_drift"][-1] == 0
    assert running.verdict.regime == "undecided"
    assert "running statistics" in running.verdict.reason
    on_the_probe = NTKMonitor(6, every_n_steps=5)
    fit(tmp_path, classifier(norm_net, lr=0.0), [on_the_probe])
    assert on_the_probe.history["ntk/drift"] == [0.0, 0.0, 0.0]
    assert on_the_probe.verdict.regime == "unknown"


def test_statistics_that_have_settled_leave_a_verdict(tmp_path: Path) -> None:
    """From step 40 on they follow the parameters, which move little."""
    monitor = NTKMonitor(6, every_n_steps=20, anchor_at=40, recalibrate=False)
    network = classifier(norm_net, lr=0.002)
    fit(tmp_path, network, [monitor], loader(batch_size=40), max_epochs=80)
    assert monitor.history["step"] == [40, 60, 80]
    assert monitor.history["ntk/drift"][0] == 0.0
    assert monitor.history["ntk/anchor_step"][0] == 40.0
    assert monitor.history["ntk/buffer_drift"][-1] < 0.1
    assert monitor.verdict.regime != "undecided"


class Diverges(Classifier):
    """Has a loss that is NaN from some step on."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step >= 3 else loss


@pytest.mark.parametrize("kind", KINDS)
def test_divergence(kind: type, tmp_path: Path) -> None:
    monitor = kind(6, every_n_steps=1)
    with pytest.warns(UserWarning, match="NaN or infinite parameters at step 4"):
        fit(tmp_path, classifier(kind=Diverges), [monitor])
    assert monitor.history["step"] == [0, 1, 2, 3]
    assert monitor.verdict.regime == "diverged"
    assert "at step 4; lower the learning rate" in monitor.verdict.reason
    other = kind(6)
    other.load_state_dict(monitor.state_dict())
    assert other.verdict == monitor.verdict


# ------------------------------------------------------------------ targets
def test_a_mask_is_not_taken_for_targets(tmp_path: Path) -> None:
    class Masked(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[2])

    x, y = data().tensors
    batches = DataLoader(TensorDataset(x, torch.ones(len(x)), y), 8)
    monitor = NTKMonitor(6, every_n_steps=2)
    with pytest.warns(UserWarning, match="'alignment' is not measured: .*input_fn") as caught:
        fit(tmp_path, classifier(kind=Masked), [monitor], batches)
    assert sum("alignment" in str(w.message) for w in caught) == 1
    assert "ntk/alignment" not in monitor.history
    fit(tmp_path, classifier(kind=Masked), [KernelDrift(6)], batches)  # needs no targets
    told = NTKMonitor(6, input_fn=lambda batch: (batch[0], batch[2]))
    fit(tmp_path, classifier(kind=Masked), [told], batches)
    assert told.history["ntk/alignment"][-1] > 0


def test_bools_are_labels(tmp_path: Path) -> None:
    x = data().tensors[0]
    module = classifier(lambda: nn.Sequential(nn.Linear(6, 2)))
    monitor = NTKMonitor((x[:6], x[:6, 0] > 0), every_n_steps=5)
    fit(tmp_path, module, [monitor], loader(TensorDataset(x, (x[:, 0] > 0).long())))
    assert monitor.history["ntk/alignment"][-1] > 0
