"""A validation probe beside the training probe, and probes from datasets, in a Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import (
    QUIET,
    Classifier,
    classifier,
    data,
    loader,
    trainer,
    untimed,
    with_batch_norm,
)
from test_callbacks_identity import assert_same, outcome
from torch.utils.data import DataLoader, Subset

from torch_ntk.callbacks import KernelDrift, KernelSpectrum, LinearizationGap, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

VALIDATED = ("drift", "kernel_distance", "alignment", "linearization_gap")


def validation() -> DataLoader:
    """Samples that training does not see."""
    return loader(Subset(data(60), range(40, 60)), batch_size=10, shuffle=False)


def fit(path: Path, module: Any, callbacks: list[Any], **options: Any) -> None:
    torch.manual_seed(0)
    ckpt_path = options.pop("ckpt_path", None)
    run = trainer(path, callbacks, **options)
    run.fit(module, loader(), validation(), ckpt_path=ckpt_path, weights_only=ckpt_path and True)


def test_the_curves_of_a_probe_of_their_own(tmp_path: Path) -> None:
    """`val_drift` is the drift of a monitor whose probe these samples are."""
    x, y = data(60)[40:46]
    options: dict[str, Any] = {"every_n_steps": 3, "recalibrate": False}
    both = NTKMonitor(6, validation_probe=(x, y), **options)
    alone = NTKMonitor((x, y), prefix="alone", **options)
    plain = NTKMonitor(6, prefix="plain", **options)
    fit(tmp_path, classifier(with_batch_norm), [both, alone, plain])
    for name in VALIDATED:
        assert both.history[f"ntk/val_{name}"] == alone.history[f"alone/{name}"]
        assert both.history[f"ntk/{name}"] == plain.history[f"plain/{name}"]
        assert both.history[f"ntk/val_{name}"] != both.history[f"ntk/{name}"]
    assert set(untimed(both.history)) == {
        "step",
        *(f"ntk/val_{n}" for n in VALIDATED),
        *(n.replace("plain/", "ntk/") for n in untimed(plain.history) if n != "step"),
    }


def test_samples_of_the_sanity_check(tmp_path: Path) -> None:
    taken = NTKMonitor(6, validation_probe=4, every_n_steps=5)
    given = NTKMonitor(6, validation_probe=(data(60), range(40, 44)), every_n_steps=5, prefix="g")
    fit(tmp_path, classifier(), [taken, given])
    for name in VALIDATED:
        assert taken.history[f"ntk/val_{name}"] == given.history[f"g/val_{name}"]
    assert taken.state_dict()["validation"]["x"].shape == (4, 6)


def test_without_a_sanity_check(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, validation_probe=4, every_n_steps=5)
    with pytest.warns(UserWarning, match="No validation batch came before") as caught:
        fit(tmp_path, classifier(), [monitor], num_sanity_val_steps=0)
    assert sum("No validation batch" in str(w.message) for w in caught) == 1
    assert "ntk/val_drift" not in monitor.history
    assert len(monitor.history["ntk/drift"]) == 3


def test_training_is_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2}
    plain = outcome(tmp_path, with_batch_norm, classifier().__class__, [], options)
    monitor = NTKMonitor(6, validation_probe=(data(60), range(40, 50)), every_n_steps=1)
    watched = outcome(tmp_path, with_batch_norm, classifier().__class__, [monitor], options)
    assert_same(plain, watched)


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """With θ_0 and the buffers of then, which are in the file once."""
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    options: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": -1}
    settings: dict[str, Any] = {"every_n_steps": 2, "recalibrate": False}

    def net() -> Classifier:
        return classifier(with_batch_norm)

    whole = NTKMonitor(6, validation_probe=4, **settings)
    alone = NTKMonitor(data(60)[40:44], prefix="alone", **settings)
    fit(tmp_path, net(), [whole, alone, saver], max_steps=7, **options)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["NTKMonitor[ntk]"]
    assert state["validation"]["params"] == state["validation"]["buffers"] == {}
    rest = NTKMonitor(6, validation_probe=4, **settings)
    rest.load_state_dict(copy.deepcopy(state))
    assert rest.state_dict()["validation"]["x"].shape == (4, 6)
    path = str(tmp_path / "last.ckpt")
    rest = NTKMonitor(6, validation_probe=4, **settings)
    alone = NTKMonitor(data(60)[40:44], prefix="alone", **settings)
    fit(tmp_path, net(), [rest, alone], max_epochs=3, ckpt_path=path)
    assert len(rest.history["step"]) > len(whole.history["step"])
    for name in VALIDATED:
        found = rest.history[f"ntk/val_{name}"]
        assert found[:4] == whole.history[f"ntk/val_{name}"][:4]
        assert found == alone.history[f"alone/{name}"]
    bare = NTKMonitor(6, **settings)  # a run may go on without it
    fit(tmp_path, net(), [bare], max_epochs=3, ckpt_path=path)
    assert bare.history["ntk/drift"] == rest.history["ntk/drift"]


@pytest.mark.parametrize("kind", [KernelDrift, LinearizationGap])
def test_the_parts_take_one_too(kind: type, tmp_path: Path) -> None:
    monitor = kind(6, validation_probe=data(60)[40:46][0], every_n_steps=5)
    fit(tmp_path, classifier(), [monitor])
    names = [n for n in monitor.history if "val_" in n]
    assert names
    assert all(monitor.history[name][-1] > 0.0 for name in names)


def test_a_part_that_has_nothing_to_measure_on_it() -> None:
    with pytest.raises(ValueError, match="`validation_probe` must be given with one of"):
        KernelSpectrum(6, validation_probe=4)


def test_a_validation_batch_of_an_unusual_form(tmp_path: Path) -> None:
    class Looks(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    def run(monitor: NTKMonitor) -> None:
        odd: Any = DataLoader([{"left": x} for x, _ in data()], 8)  # type: ignore[arg-type]
        trainer(tmp_path, [monitor]).fit(classifier(kind=Looks), loader(), odd)

    with pytest.raises(TypeError, match="keys"):
        run(NTKMonitor(6, validation_probe=4))
    monitor = NTKMonitor(6, validation_probe=4, on_error="warn", every_n_steps=5)
    with pytest.warns(UserWarning, match="No validation probe: .*keys"):
        run(monitor)
    assert len(monitor.history["ntk/drift"]) == 3


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), ("4", TypeError), ((data(), [99]), ValueError)]
)
def test_bad_arguments(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`validation_probe` must be"):
        NTKMonitor(validation_probe=value)
