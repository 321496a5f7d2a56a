"""`LossForecast` from a configuration, with θ_0 beside, and where a measurement fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import QUIET, Classifier, classifier, fit, untimed
from test_callbacks_cli import configured, pair
from test_callbacks_everything import Hungry
from test_callbacks_identity import assert_same, outcome
from test_callbacks_loss_forecast import LABELS, X, whole

from torch_ntk.callbacks import LossForecast

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:LossForecast predicts a training on its probe"),
]
OPTIONS: dict[str, Any] = {
    "probe": 7,
    "loss": "cross_entropy",
    "at_steps": [1, 4],
    "max_overhead": 0.1,
    "on_error": "warn",
    "prefix": "told",
    "network": "network",
    "params": ["2.weight", "2.bias"],
    "batch_size": 3,
    "method": "jacobian",
    "tensorboard_layout": False,
    "theta_0": "beside",
    "input_fn": "test_callbacks_cli.pair",
}


def test_from_a_file(tmp_path: Path) -> None:
    """A run from YAML is the run from Python."""
    entry = {"class_path": "torch_ntk.callbacks.LossForecast", "init_args": OPTIONS}
    cli = configured(tmp_path, [entry], "fit")
    (built,) = [c for c in cli.trainer.callbacks if isinstance(c, LossForecast)]
    assert built.history["step"] == [0, 1, 4, 10]
    assert {"told/actual", "told/predicted", "told/max_lr"} <= set(built.history)
    assert built.history["told/predicted"][0] == built.history["told/actual"][0]
    assert len(built.state_dict()["observer"]["anchor"]["x"]) == 7
    assert built.state_dict()["observer"]["anchor"]["trained"] == ["2.weight", "2.bias"]
    direct = LossForecast(**{**OPTIONS, "input_fn": pair})
    for name in ("network", "theta_0", "tensorboard_layout", "prefix", "on_error"):
        assert getattr(built, name) == getattr(direct, name) == OPTIONS[name]


def test_with_theta_0_beside(tmp_path: Path) -> None:
    straight = LossForecast((X, LABELS), every_n_steps=2, theta_0="beside")
    fit(tmp_path / "a", classifier(lr=0.05), [straight], whole(), max_epochs=7)
    options: dict[str, Any] = {"every_n_steps": 2, "theta_0": "beside"}
    first, second = (LossForecast((X, LABELS), **options) for _ in range(2))
    saver = ModelCheckpoint(tmp_path, save_last=True)
    run: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": 4}
    fit(tmp_path, classifier(lr=0.05), [first, saver], whole(), **run)
    assert len(list(tmp_path.glob("theta_0-*.safetensors"))) == 1
    path = tmp_path / "last.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"][first.state_key]
    assert state["observer"]["anchor"]["params"] == {}
    fit(tmp_path, classifier(lr=0.05), [second], whole(), str(path), max_epochs=7)
    assert untimed(second.history) == untimed(straight.history)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_memory_that_runs_out(kind: str, tmp_path: Path) -> None:
    plain = outcome(tmp_path, lambda: Hungry(kind), Classifier, [], {})
    forecast = LossForecast(8, every_n_steps=1, on_error="warn")
    with pytest.warns(UserWarning, match="No measurement at step 0"):
        watched = outcome(tmp_path, lambda: Hungry(kind), Classifier, [forecast], {})
    assert_same(plain, watched)
    assert forecast.history == {}
