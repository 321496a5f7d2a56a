"""`LossForecast` in a Trainer: right numbers, no trace in the run, and what it says."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
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
from torch import Tensor, nn

from torch_ntk import linearize
from torch_ntk.callbacks import LossForecast, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
X, LABELS = data(16)[:]
NUMBERS = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))


class Regressor(Classifier):
    """Squared error, and momentum 0.6 in two groups with rates of their own."""

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": self.network[0].parameters(), "lr": self.lr},
            {"params": self.network[2].parameters(), "lr": 0.25 * self.lr},
        ]
        return torch.optim.SGD(groups, momentum=0.6)


class WithoutMomentum(Regressor):
    """Plain gradient descent: a step depends on nothing before it."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Scheduled(Classifier):
    """The learning rate halves after the third step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3], 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class WithAdam(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)


class WithNesterov(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


class Decaying(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.01)


def whole(y: Tensor = LABELS) -> Any:
    """All samples in each batch, in one order."""
    return loader(torch.utils.data.TensorDataset(X, y), batch_size=16, shuffle=False)


def linear_losses(module: Classifier, batch: tuple[Tensor, Tensor], steps: int) -> list[float]:
    """The linearized network, really trained by the module's own optimizer."""
    twin = copy.deepcopy(module).double()
    model = linearize(twin.network)
    optimizer = twin.configure_optimizers()
    places = {id(p): n for n, p in twin.network.named_parameters()}
    mine = dict(zip(places.values(), model.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [mine[places[id(p)]] for p in group["params"]]
    losses = []
    x = batch[0].double()
    for _ in range(steps + 1):
        f = model(x)
        is_labels = batch[1].ndim == 1
        loss = F.cross_entropy(f, batch[1]) if is_labels else F.mse_loss(f, batch[1].double())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_squared_error_is_that_of_the_linearized_network(tmp_path: Path) -> None:
    module = classifier(kind=Regressor, lr=0.3)
    expected = linear_losses(module, (X, NUMBERS), 12)
    forecast, watch = LossForecast((X, NUMBERS), every_n_steps=4), Watch()
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(tmp_path, module, [forecast, watch], whole(NUMBERS), max_epochs=13, logger=logger)
    history = forecast.history
    assert history["step"] == [0, 4, 8, 12, 13]
    assert history["forecast/predicted"][:4] == pytest.approx(expected[::4], rel=1e-8)
    assert history["forecast/max_lr"][0] > 0.3
    for k, step in enumerate((0, 4, 8, 12, 13)):
        module.load_state_dict(watch.at[step])
        network = copy.deepcopy(module.network).double().eval()
        actual = float(F.mse_loss(network(X.double()), NUMBERS.double()).detach())
        assert history["forecast/actual"][k] == pytest.approx(actual, rel=1e-12)
    loss, movement = forecast.plot()[1]
    drawn = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines()}
    assert drawn == {name: history[f"forecast/{name}"] for name in ("predicted", "actual")}
    assert movement.get_title() == "relative movement"
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "forecast/predicted" in text
    assert f"{history['forecast/predicted'][2]}"[:12] in text


def test_a_forecast_that_begins_at_a_later_step(tmp_path: Path) -> None:
    """Steps count from where Θ_0 was taken, at the parameters of that step."""
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=5)
    options: dict[str, Any] = {"enable_checkpointing": True}
    module = classifier(kind=WithoutMomentum, lr=0.3)
    fit(tmp_path, module, [saver], whole(NUMBERS), max_epochs=5, **options)
    expected = linear_losses(module, (X, NUMBERS), 8)
    forecast, path = LossForecast((X, NUMBERS), every_n_steps=4), str(tmp_path / "last.ckpt")
    module = classifier(kind=WithoutMomentum, lr=0.3)
    with pytest.warns(UserWarning, match="starts at step 5"):
        fit(tmp_path, module, [forecast], whole(NUMBERS), max_epochs=13, ckpt_path=path)
    assert forecast.history["step"] == [5, 8, 12, 13]
    meant = [expected[step - 5] for step in (5, 8, 12, 13)]
    assert forecast.history["forecast/predicted"] == pytest.approx(meant, rel=1e-8)


def test_cross_entropy_follows_small_steps(tmp_path: Path) -> None:
    # Momentum 0.9 keeps a step for ten others: small means small over ten steps.
    module = classifier(kind=Classifier, lr=0.001)
    expected = linear_losses(module, (X, LABELS), 400)
    forecast = LossForecast((X, LABELS), every_n_steps=100)
    fit(tmp_path, module, [forecast], whole(), max_epochs=400)
    found = forecast.history["forecast/predicted"]
    assert found == pytest.approx(expected[::100], rel=0.02)
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    assert found[0] == forecast.history["forecast/actual"][0]
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("numbers", [False, True], ids=["labels", "numbers"])
def test_a_resumed_run_has_the_same_curves(numbers: bool, tmp_path: Path) -> None:
    y, kind = (NUMBERS, Regressor) if numbers else (LABELS, Classifier)
    path, saver = tmp_path / "last.ckpt", ModelCheckpoint(tmp_path, save_last=True)
    straight = LossForecast((X, y), every_n_steps=2)
    fit(tmp_path / "a", classifier(kind=kind, lr=0.05), [straight], whole(y), max_epochs=9)
    first, second = (LossForecast((X, y), every_n_steps=2) for _ in range(2))
    options: dict[str, Any] = {"enable_checkpointing": True}
    fit(tmp_path, classifier(kind=kind, lr=0.05), [first, saver], whole(y), max_epochs=4, **options)
    torch.manual_seed(99)  # another network: everything has to come from the checkpoint
    other = kind(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), lr=0.05)
    fit(tmp_path, other, [second], whole(y), str(path), max_epochs=9)
    assert untimed(second.history) == untimed(straight.history)


@pytest.mark.parametrize("make", [with_batch_norm, None], ids=["noisy", "plain"])
def test_the_run_is_bitwise_the_same(make: Any, tmp_path: Path) -> None:
    results = []
    for callbacks in ([], [LossForecast((X, LABELS), every_n_steps=1), NTKMonitor(8)]):
        module = classifier(make) if make else classifier()
        run = fit(tmp_path, module, callbacks, whole(), max_epochs=5)
        states = [v.clone() for v in module.state_dict().values()]
        moments = [s["momentum_buffer"] for s in run.optimizers[0].state.values()]
        rng = [torch.get_rng_state(), torch.rand(3), torch.tensor(np.random.rand(3))]  # noqa: NPY002
        results.append([*states, *moments, *rng, torch.tensor(random.random())])
    assert len(results[0]) == len(results[1]) > 8
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_diverging_rate_is_said_once(tmp_path: Path) -> None:
    forecast = LossForecast((X, NUMBERS), every_n_steps=1)
    with pytest.warns(UserWarning, match="is not below the largest stable one") as caught:
        fit(tmp_path, classifier(kind=Regressor, lr=9.0), [forecast], whole(NUMBERS), max_epochs=3)
    assert sum("largest stable" in str(w.message) for w in caught) == 1
    assert forecast.history["forecast/max_lr"][0] < 9.0
    predicted = forecast.history["forecast/predicted"]
    assert predicted[-1] > predicted[0]


def test_a_rate_that_changes_ends_the_forecast(tmp_path: Path) -> None:
    forecast = LossForecast((X, LABELS), every_n_steps=1)
    with pytest.warns(UserWarning, match="changed at step 3") as caught:
        fit(tmp_path, classifier(kind=Scheduled), [forecast], whole(), max_epochs=6)
    assert sum("changed at" in str(w.message) for w in caught) == 1
    predicted = torch.tensor(forecast.history["forecast/predicted"])
    assert predicted.isfinite().tolist() == [True] * 4 + [False] * 3
    assert torch.tensor(forecast.history["forecast/actual"]).isfinite().all()


LEFT_OUT = [
    (WithAdam, "optimizer that has taken a step; got a AdamW before its first.* anchor_at=N"),
    (TwoOptimizers, "`optimizer` must be .*2 optimizers"),
    (WithNesterov, "got SGD with nesterov=True"),
]


@pytest.mark.parametrize(("kind", "text"), LEFT_OUT, ids=["adam", "two", "nesterov"])
def test_what_has_no_forecast_is_said_in_one_line(kind: Any, text: str, tmp_path: Path) -> None:
    forecast, module = LossForecast((X, LABELS), every_n_steps=1), classifier(kind=kind)
    start = copy.deepcopy(module.network).double()(X.double()).detach()
    with pytest.warns(UserWarning, match=f"predicts nothing in this run: .*{text}") as caught:
        fit(tmp_path, module, [forecast], whole(), max_epochs=3)
    assert sum("optimizer" in str(w.message) for w in caught) == 1
    actual = forecast.history["forecast/actual"]
    assert actual[0] == pytest.approx(float(F.cross_entropy(start, LABELS)), rel=1e-10)
    assert len(actual) == 4
    assert not {"forecast/predicted", "forecast/max_lr"} & set(forecast.history)


def test_adam_is_predicted_from_a_later_step_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in a run that is resumed."""
    path, saver = tmp_path / "last.ckpt", ModelCheckpoint(tmp_path, save_last=True)
    options: dict[str, Any] = {"enable_checkpointing": True}
    curves = []
    for stop in (None, 25):
        first, second = (LossForecast((X, LABELS), every_n_steps=5, anchor_at=20) for _ in "ab")
        if stop is not None:
            short = classifier(kind=WithAdam)
            fit(tmp_path, short, [first, saver], whole(), max_epochs=stop, **options)
        module = classifier(kind=WithAdam)
        with caplog.at_level("INFO"):
            fit(tmp_path, module, [second], whole(), stop and str(path), max_epochs=36)
        curves.append(untimed(second.history))
    assert curves[0] == curves[1]
    assert "assumes that P of AdamW stays as it is now" in caplog.text
    assert "squared gradients that are averaged over about 20 steps" in caplog.text
    assert curves[0]["step"] == [20, 25, 30, 35, 36]
    predicted, actual = curves[0]["forecast/predicted"], curves[0]["forecast/actual"]
    assert predicted[0] == actual[0]
    moved = actual[0] - actual[-1]
    assert moved > 0.05
    assert abs(predicted[-1] - actual[-1]) < 0.2 * moved


def test_statistics_are_those_of_the_probe(tmp_path: Path) -> None:
    forecast = LossForecast((X, LABELS))
    fit(tmp_path, classifier(with_batch_norm), [forecast], whole(), max_epochs=1)
    assert forecast.history["forecast/predicted"][0] == forecast.history["forecast/actual"][0]


def test_what_a_forecast_leaves_out_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"weight decay 0\.01 is not part of the forecast"):
        fit(tmp_path, classifier(kind=Decaying), [LossForecast((X, LABELS))], whole())
    with pytest.warns(UserWarning, match="probe of 8 samples, but 40 are trained on"):
        fit(tmp_path, classifier(), [LossForecast(8)], loader())


def test_without_targets_there_is_no_loss(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target"):
        fit(tmp_path, classifier(), [LossForecast(X)], whole())


def test_weighted_losses_are_found(tmp_path: Path) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    module = classifier(lr=0.02)
    module.criterion = nn.CrossEntropyLoss(weight=weights)
    forecast = LossForecast((X, LABELS), every_n_steps=1)
    start = copy.deepcopy(module.network).double()(X.double()).detach()
    fit(tmp_path, module, [forecast], whole(), max_epochs=2)
    expected = float(F.cross_entropy(start, LABELS, weight=weights.double()))
    assert forecast.history["forecast/actual"][0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "value"), [("loss", "mse"), ("probe", 0), ("prefix", ""), ("every_n_steps", 0)]
)
def test_bad_settings(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        LossForecast(**{"probe": 8, name: value})
