"""The callbacks from a `LightningCLI` configuration, and several of them in one run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning_runs import QUIET, Classifier, classifier, data, fit, loader, mlp, untimed
from torch import Tensor, nn

from torch_ntk.callbacks import KernelDrift, NTKMonitor, StabilityEdge

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*lr times the largest curvature"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
]


class FromConfig(Classifier):
    """A module that a configuration can build."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(mlp(), lr)

    def train_dataloader(self) -> Any:
        return loader()


def doubled(net: nn.Module, x: Tensor) -> Tensor:
    """For `forward_fn`."""
    return 2 * net(x)


def pair(batch: Any) -> Any:
    """For `input_fn`."""
    return batch[0], batch[1]


EVERY_ARGUMENT: dict[str, Any] = {
    "probe": 7,
    "validation_probe": 4,
    "every_n_steps": 2,
    "at_steps": None,
    "anchor_at": 3,
    "recalibrate": False,
    "schedule": "log",
    "output": "trace",
    "kernel": "optimizer",
    "metrics": ["drift", "lambda_max", "stability"],
    "log_figures": False,
    "figure_every": 10,
    "tensorboard_layout": False,
    "theta_0": "beside",
    "max_overhead": 0.1,
    "on_error": "warn",
    "prefix": "kernel",
    "network": "network",
    "input_fn": "test_callbacks_cli.pair",
    "forward_fn": "test_callbacks_cli.doubled",
    "params": ["2.weight"],
    "batch_size": 3,
    "max_memory": "2GB",
    "dtype": "torch.float64",
    "method": "structured",
    "loss": "cross_entropy",
    "coupled": False,  # with it there are no blocks, and no number of samples
}


def configured(path: Path, callbacks: list[dict[str, Any]], *arguments: str) -> LightningCLI:
    config = {
        "seed_everything": 3,
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(path),
            "callbacks": callbacks,
        },
    }
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    given = [*arguments, "--config", str(file)]
    return LightningCLI(FromConfig, run="fit" in arguments, args=given, save_config_callback=None)


def test_the_list_of_arguments_is_complete() -> None:
    assert set(EVERY_ARGUMENT) == set(inspect.signature(NTKMonitor).parameters)


def test_every_argument_from_a_file(tmp_path: Path) -> None:
    """What the file says is what the constructor gets."""
    entry = {"class_path": "torch_ntk.callbacks.NTKMonitor", "init_args": EVERY_ARGUMENT}
    cli = configured(tmp_path, [entry])
    (built,) = [c for c in cli.trainer.callbacks if isinstance(c, NTKMonitor)]
    options = {
        **EVERY_ARGUMENT,
        "input_fn": pair,
        "forward_fn": doubled,
        "dtype": torch.float64,
    }
    direct = NTKMonitor(**options)
    assert repr_of(built) == repr_of(direct)


def repr_of(value: Any, depth: int = 0) -> Any:
    """Nested attributes of the objects of this package; functions by their names."""
    if isinstance(value, (list, tuple)):
        return [repr_of(v, depth) for v in value]
    if isinstance(value, dict):
        return {k: repr_of(v, depth) for k, v in value.items()}
    if inspect.isfunction(value):
        return value.__qualname__
    if type(value).__module__.startswith("torch_ntk") and hasattr(value, "__dict__"):
        assert depth < 6
        return {n: repr_of(v, depth + 1) for n, v in vars(value).items()}
    return repr(value)


def test_a_run_from_a_file(tmp_path: Path) -> None:
    entries = [
        {
            "class_path": "torch_ntk.callbacks.NTKMonitor",
            "init_args": {"probe": 6, "every_n_steps": 5},
        },
        {
            "class_path": "torch_ntk.callbacks.StabilityEdge",
            "init_args": {"probe": 6, "at_steps": [3], "loss": "cross_entropy"},
        },
        {"class_path": "torch_ntk.callbacks.KernelDrift", "init_args": {"prefix": "other"}},
    ]
    cli = configured(tmp_path, entries, "fit")
    found = {type(c): c for c in cli.trainer.callbacks}
    monitor, edge = found[NTKMonitor], found[StabilityEdge]
    assert isinstance(monitor, NTKMonitor)
    assert isinstance(edge, StabilityEdge)
    assert monitor.history["step"] == [0, 5, 10]
    assert edge.history["step"] == [0, 3, 10]
    assert KernelDrift in found


def test_bad_values_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"class_path": "torch_ntk.callbacks.NTKMonitor", "init_args": {"every_n_step": 5}}
    with pytest.raises(SystemExit):
        configured(tmp_path, [entry])
    assert "every_n_step" in capsys.readouterr().err


def test_several_monitors_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each has the curves that it has alone, and each its own columns in the logger."""
    x, y = data()[:10]

    def monitors() -> list[NTKMonitor]:
        return [
            NTKMonitor(6, every_n_steps=2),
            NTKMonitor((x, y), every_n_steps=3, prefix="fixed", output="full"),
            NTKMonitor(4, every_n_steps=2, prefix="readout", params=["network.2.weight"]),
        ]

    together = monitors()
    table = CSVLogger(tmp_path)
    fit(tmp_path, classifier(), together, logger=table)
    for k, alone in enumerate(monitors()):
        fit(tmp_path, classifier(), [alone])
        assert untimed(alone.history) == untimed(together[k].history)
    header = (Path(table.log_dir) / "metrics.csv").read_text().splitlines()[0]
    for prefix in ("ntk", "fixed", "readout"):
        assert f"{prefix}/drift" in header
