"""A run that is stopped and resumed has the curves of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_runs import (
    QUIET,
    Classifier,
    TwoOptimizers,
    classifier,
    fit,
    loader,
    mlp,
    untimed,
    with_batch_norm,
)
from torch import Tensor, nn

from torch_ntk.callbacks import (
    KernelCallback,
    KernelDrift,
    KernelSpectrum,
    LinearizationGap,
    NTKMonitor,
    StabilityEdge,
)

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
    pytest.mark.filterwarnings("ignore:StabilityEdge. at step"),
]
KINDS = [NTKMonitor, KernelDrift, KernelSpectrum, LinearizationGap, StabilityEdge]


class InOrder(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The same batch in every place of the epoch, so that a resume meets what it would have."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k % 8)
        x = torch.randn(6, generator=generator)
        return x, x[:3].argmax()


def batches() -> Any:
    return loader(InOrder(), shuffle=False)


def curves(monitor: KernelCallback) -> dict[int, dict[str, float]]:
    """Everything but the clock, by step, without what was not measured there."""
    history = untimed(monitor.history)
    rows = [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=True)]
    return {int(r["step"]): {n: v for n, v in r.items() if v is not None} for r in rows}


def stopped(path: Path, module: Classifier, monitor: KernelCallback, **options: Any) -> str:
    """Train to `max_steps` and return the checkpoint."""
    settings = {"enable_checkpointing": True, "max_epochs": -1, **options}
    saving = settings.pop("saving", {"every_n_train_steps": 1})
    saver = ModelCheckpoint(path, save_last=True, **saving)
    fit(path, module, [monitor, saver], batches(), **settings)
    return str(path / "last.ckpt")


STOPS: list[tuple[int, dict[str, int]]] = [
    (5, {"every_n_train_steps": 1}),  # after the last batch of an epoch
    (5, {"every_n_epochs": 1}),  # at the end of the epoch, after the point of the last step
    (7, {"every_n_train_steps": 1}),  # within an epoch
    (7, {"every_n_train_steps": 4}),  # at step 4, which has no point yet
]


# The monitor at each of them, and the others, which share its way of going on, at one.
@pytest.mark.parametrize(
    ("kind", "stop", "saving"),
    [
        *((NTKMonitor, *stop) for stop in STOPS),
        *((kind, *stop) for kind, stop in zip(KINDS[1:], STOPS, strict=True)),
    ],
)
def test_curves_are_those_of_the_whole_run(
    kind: type, stop: int, saving: dict[str, int], tmp_path: Path
) -> None:
    whole = kind(6, every_n_steps=2)
    fit(tmp_path, classifier(), [whole], batches(), max_epochs=3)
    first = kind(6, every_n_steps=2)
    path = stopped(tmp_path, classifier(), first, max_steps=stop, saving=saving)

    resumed, module = kind(6, every_n_steps=2), classifier()
    torch.nn.init.zeros_(module.network[0].weight)  # nothing may come from before the restore
    fit(tmp_path, module, [resumed], batches(), ckpt_path=path, max_epochs=3)
    expected, found = curves(whole), curves(resumed)
    assert set(found) == set(expected) | ({stop} if "every_n_epochs" in saving else set())
    for step in expected:
        if "every_n_epochs" in saving:  # the speed is that since the point of the first run's end
            expected[step].pop("ntk/velocity", None)
            found[step].pop("ntk/velocity", None)
        assert found[step] == expected[step], step


@pytest.mark.parametrize(
    ("make", "kind", "options"),
    [
        (with_batch_norm, Classifier, {}),
        (mlp, Classifier, {"accumulate_grad_batches": 2}),
        (mlp, TwoOptimizers, {}),
    ],
)
def test_resumed_under_other_conditions(
    make: Any, kind: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Anchored at step 0, and at every step at most once."""
    steps = 12 if kind is TwoOptimizers else 6
    path = stopped(
        tmp_path, classifier(make, kind), NTKMonitor(6, every_n_steps=1), max_steps=steps, **options
    )
    resumed = NTKMonitor(6, every_n_steps=1)
    fit(tmp_path, classifier(make, kind), [resumed], batches(), path, max_epochs=4, **options)
    found = resumed.history["step"]
    assert found == sorted(set(found))
    assert found == list(range(int(found[-1]) + 1))
    assert resumed.history["ntk/drift"][0] == 0.0
    assert min(resumed.history["ntk/drift"][1:]) > 0.0
    assert resumed.state_dict()["observer"]["anchor"]["step"] == 0


def test_averaged_weights_do_not_become_the_anchor(tmp_path: Path) -> None:
    """A checkpoint under weight averaging has the average where the weights usually are."""
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    options: dict[str, Any] = {"enable_checkpointing": True}
    whole = NTKMonitor(6, every_n_steps=2)
    fit(tmp_path, classifier(), [whole, EMAWeightAveraging(decay=0.5)], batches(), max_epochs=3)
    first = NTKMonitor(6, every_n_steps=2)
    both = [first, EMAWeightAveraging(decay=0.5), saver]
    fit(tmp_path, classifier(), both, batches(), max_steps=7, **options)
    resumed = NTKMonitor(6, every_n_steps=2)
    both = [resumed, EMAWeightAveraging(decay=0.5)]
    fit(tmp_path, classifier(), both, batches(), str(tmp_path / "last.ckpt"), max_epochs=3)
    expected, found = curves(whole), curves(resumed)
    assert {step: found[step] for step in expected} == expected


def test_the_state_is_plain(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=2)
    path = stopped(tmp_path, classifier(with_batch_norm), monitor, max_steps=5)
    state = torch.load(path, weights_only=True)["callbacks"]["NTKMonitor[ntk]"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(k) is str for k in value)
            for v in value.values():
                check(v)
        elif type(value) is list:
            for v in value:
                check(v)
        else:
            assert type(value) in (Tensor, bool, int, float, str, type(None)), type(value)

    check(state)
    again = NTKMonitor(6)
    again.load_state_dict(state)
    assert curves(again) == {k: v for k, v in curves(monitor).items() if k < 5}


def test_two_monitors_keep_their_states_apart(tmp_path: Path) -> None:
    def pair() -> list[NTKMonitor]:
        return [
            NTKMonitor(4, every_n_steps=2, prefix="a", metrics=("drift",)),
            NTKMonitor(6, every_n_steps=3, prefix="b", metrics=("drift",)),
        ]

    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    options: dict[str, Any] = {"enable_checkpointing": True}
    fit(tmp_path, classifier(), [*pair(), saver], batches(), max_steps=6, **options)
    again = pair()
    path = str(tmp_path / "last.ckpt")
    fit(tmp_path, classifier(), again, batches(), path, max_epochs=2)
    assert again[0].history["step"] == [0, 2, 4, 6, 8, 10]
    assert again[1].history["step"] == [0, 3, 6, 9, 10]
    assert len(again[0].state_dict()["observer"]["anchor"]["x"]) == 4
    assert len(again[1].state_dict()["observer"]["anchor"]["x"]) == 6
    assert set(again[0].history) == {
        "step",
        *(f"a/{n}" for n in ("drift", "seconds", "overhead", "batches")),
    }


@pytest.mark.parametrize(
    "pair",
    [
        lambda: [NTKMonitor(4), KernelDrift(4)],
        lambda: [LinearizationGap(4, prefix="p"), NTKMonitor(4, prefix="p")],
    ],
)
def test_the_same_prefix_twice(pair: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`prefix` must be different"):
        fit(tmp_path, classifier(), pair())


def test_two_states_under_one_key(tmp_path: Path) -> None:
    """Lightning refuses these itself, already when the Trainer is built."""
    pair = [NTKMonitor(4, metrics=("drift",)), NTKMonitor(4, metrics=("alignment",))]
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `NTKMonitor`"):
        fit(tmp_path, classifier(), pair)


def test_a_monitor_added_in_the_middle_says_where_it_stands(tmp_path: Path) -> None:
    """It has no state in the checkpoint, so step 0 is lost to it."""
    other = KernelSpectrum(4, prefix="other")
    path = stopped(tmp_path, classifier(), other, max_steps=5)
    late, table = NTKMonitor(6, every_n_steps=2), CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="NTKMonitor starts at step 5"):
        fit(tmp_path, classifier(), [late], batches(), path, max_epochs=2, logger=table)
    assert late.history["step"] == [5, 6, 8, 10]
    assert late.history["ntk/drift"][0] == 0.0
    assert late.history["ntk/anchor_step"][0] == 5.0
    text = (Path(table.log_dir) / "metrics.csv").read_text()
    assert "ntk/anchor_step" in text


def test_a_checkpoint_from_before_the_first_measurement(tmp_path: Path) -> None:
    """A state without an anchor is one to begin from."""
    fresh = NTKMonitor(6, every_n_steps=5)
    state = fresh.state_dict()
    assert state["observer"]["anchor"] is None
    again = NTKMonitor(6, every_n_steps=5)
    again.load_state_dict(state)
    fit(tmp_path, classifier(), [again])
    assert again.history["step"] == [0, 5, 10]
    assert again.history["ntk/drift"][0] == 0.0


class Wider(Classifier):
    strict_loading = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}
        checkpoint["optimizer_states"] = []
        checkpoint["lr_schedulers"] = []


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_another_architecture_is_refused(on_error: str, tmp_path: Path) -> None:
    path = stopped(tmp_path, classifier(), NTKMonitor(6, every_n_steps=1), max_steps=5)
    monitor = NTKMonitor(6, every_n_steps=1, on_error=on_error)
    module = classifier(wider, Wider)
    text = "other parameters or shapes: network.0.bias"
    if on_error == "raise":
        with pytest.raises(ValueError, match=text):
            fit(tmp_path, module, [monitor], batches(), path, max_epochs=2)
        return
    with pytest.warns(UserWarning, match=text):
        fit(tmp_path, module, [monitor], batches(), path, max_epochs=2)
    assert monitor.history["step"] == [0, 1, 2, 3, 4]  # what the checkpoint had


def test_another_output_cannot_be_resumed(tmp_path: Path) -> None:
    """Kernels of "mean" and "trace" have one shape; their difference would be no drift."""
    path = stopped(tmp_path, classifier(), NTKMonitor(6), max_steps=5)
    monitor = NTKMonitor(6, output="trace")
    with pytest.raises(ValueError, match="`output` must be 'mean', as in the run"):
        fit(tmp_path, classifier(), [monitor], batches(), path, max_epochs=2)
    assert monitor.history == {}


def test_other_metrics_on_resume(tmp_path: Path) -> None:
    first = NTKMonitor(6, every_n_steps=5, metrics=("param_drift",))
    path = stopped(tmp_path, classifier(), first, max_steps=5)
    more = NTKMonitor(6, every_n_steps=5, metrics=("drift", "lambda_max", "param_drift"))
    with pytest.warns(UserWarning, match="'drift' is not measured.*without a kernel"):
        fit(tmp_path, classifier(), [more], batches(), path, max_epochs=2)
    assert "ntk/drift" not in more.history
    assert more.history["ntk/lambda_max"][-1] > 0


@pytest.mark.parametrize("state", [{"observer": {"version": 2}}, {"observer": {"version": 1}}])
def test_a_state_that_cannot_be_read(state: dict[str, Any], tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5)
    fit(tmp_path, classifier(), [monitor])
    before = curves(monitor)
    with pytest.raises(ValueError, match="`state` must be"):
        monitor.load_state_dict({"last_step": 3, **state})
    assert curves(monitor) == before
