"""`Monitor` in a training loop without a trainer."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_loop import assert_equal, lightning_history
from matplotlib.figure import Figure
from torch import Tensor, nn

from torch_ntk.monitor import METRICS, Monitor, history_plot

STEPS = 10


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def without_dropout() -> nn.Module:
    """Lightning draws random numbers of its own."""
    model = network()
    model[3] = nn.Identity()  # type: ignore[index, operator]
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(STEPS, 8, 6, generator=generator)
    return [(b, b[:, :3].argmax(1)) for b in x]


def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


def train(
    monitor: Monitor | None, model: nn.Module, *, first: int = 0, last: int = STEPS, every: int = 1
) -> torch.optim.Optimizer:
    """SGD with momentum, a step after `every` batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    taken = first
    for k, batch in enumerate(batches()[first:last]):
        if monitor is not None:
            monitor.step(model, optimizer, batch, step=None if every == 1 else taken)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        if (k + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
    return optimizer


def test_training_is_the_same() -> None:
    found = []
    for monitor in (None, Monitor(8, every_n_steps=1, metrics=(*METRICS, "stability"))):
        seeded()
        model = network()
        optimizer = train(monitor, model)
        if monitor is not None:
            monitor.finish(model, optimizer)
            assert monitor.history["step"] == list(range(STEPS + 1))
        states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
        found.append((model.state_dict(), optimizer.state_dict(), states, model.training))
    assert_equal(found[0], found[1])


def test_it_says_what_the_callback_says(tmp_path: Path) -> None:
    """The same training under Lightning gives the same numbers."""
    model, monitor = without_dropout(), Monitor(8, every_n_steps=3)
    optimizer = train(monitor, model)
    verdict = monitor.finish(model, optimizer)
    expected, words = lightning_history(tmp_path, without_dropout(), batches())
    assert str(verdict) == words
    names = {n for n in expected if not n.endswith(("seconds", "overhead"))}
    assert names | {"ntk/seconds", "ntk/overhead"} == set(monitor.history)
    for name in names:
        got, meant = monitor.history[name], expected[name]
        assert got == pytest.approx(meant, rel=1e-10, abs=1e-12, nan_ok=True), name


def test_the_history_is_a_table() -> None:
    monitor, model = Monitor(8, every_n_steps=4), network()
    train(monitor, model)
    monitor.finish(model)
    columns = monitor.history
    assert {len(column) for column in columns.values()} == {4}
    assert all(type(v) is float for column in columns.values() for v in column)
    assert columns["step"] == columns["ntk/batches"] == [0.0, 4.0, 8.0, 10.0]


def test_a_step_of_several_batches_counts_once() -> None:
    monitor, model = Monitor(8, every_n_steps=1, metrics=("param_drift",)), network()
    train(monitor, model, every=3)
    monitor.finish(model)
    assert monitor.history["step"] == [0.0, 1.0, 2.0, 3.0]
    assert monitor.history["ntk/batches"] == [0.0, 3.0, 6.0, 9.0]


@pytest.mark.parametrize("writes", ["counted", "through data"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_the_end_where_steps_are_passed(place: str, writes: str) -> None:
    """`finish` measures the parameters of the last step and gives them its number."""
    monitor, model = Monitor(8, at_steps=[3], metrics=("param_drift",)), nn.Linear(6, 3)
    for k, batch in enumerate(batches()[:4]):
        if place == "after" and k == 0:
            monitor.step(model, batch=batch, step=0)
        if place == "before":
            monitor.step(model, batch=batch, step=k)
        with torch.no_grad():
            weight = model.weight.data if writes == "through data" else model.weight
            weight.add_(0.1)
        if place == "after":
            monitor.step(model, batch=batch, step=k + 1)
    monitor.finish(model)
    ends = 5 if place == "after" and writes == "through data" else 4  # which nobody can see
    assert monitor.history["step"] == [0, 3, ends]
    first, _, last = monitor.history["ntk/param_drift"]
    assert first == 0.0
    theta = torch.cat([(model.weight - 0.4).flatten(), model.bias]).norm().item()
    assert last == pytest.approx(0.4 * 18**0.5 / theta, rel=1e-5)


def test_the_end_is_told_or_comes_from_a_state() -> None:
    monitor, model = Monitor(8, at_steps=[0], metrics=("param_drift",)), network()
    train(monitor, model, last=7, every=3)  # the seventh batch waits for two more
    assert monitor._end(model) == 2
    state = monitor.state_dict()
    monitor.finish(model, step=4)
    assert monitor.history["step"] == [0.0, 4.0]
    with pytest.raises(ValueError, match="`step` must be an integer of at least 2"):
        monitor.finish(model, step=1)
    again = Monitor(8, at_steps=[0], metrics=("param_drift",))
    again.load_state_dict(state)
    again.finish(model)
    assert again.history["step"] == [0.0, 3.0]


def test_lazy_parameters_are_waited_for() -> None:
    monitor, model = Monitor(8, anchor_at=1, every_n_steps=1, metrics=("drift",)), nn.LazyLinear(3)
    for batch in batches()[:2]:
        monitor.step(model, batch=batch)
        model(batch[0])
    assert monitor.history["step"] == [1.0]


def test_what_a_step_returns_and_logs() -> None:
    logged: list[tuple[dict[str, float], int]] = []
    monitor = Monitor(
        batches()[0],
        at_steps=[2],
        prefix="k",
        metrics=("drift",),
        log=lambda scalars, step: logged.append((scalars, step)),
    )
    model = network()
    seen = [monitor.step(model) for _ in range(4)]
    assert [s is not None for s in seen] == [True, False, True, False]
    assert seen[2] is not None
    assert logged[1] == ({f"k/{n}": v for n, v in seen[2].scalars.items()}, 2)
    assert [step for _, step in logged] == [0, 2]
    assert monitor.finish(model).regime == "unknown"  # nothing was trained
    assert [step for _, step in logged] == [0, 2, 4]


def test_state_and_back() -> None:
    """Half a run, saved and loaded as a checkpoint is, and the other half."""
    whole, model = Monitor(8, every_n_steps=2), network()
    train(whole, model, last=6)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "monitor": whole.state_dict()}, file)
    train(whole, model, first=6)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = Monitor(8, every_n_steps=2), network()
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["monitor"])
    torch.manual_seed(0)
    train(again, other, first=6)
    assert again.history["step"] == whole.history["step"] == [0, 2, 4, 6, 8]
    assert again.history["ntk/drift"][:4] == whole.history["ntk/drift"][:4]
    assert again.history["ntk/drift"][4] > 0


def test_a_resumed_run_measures_what_the_run_would_have() -> None:
    """Both probes, to the last digit: running statistics have moved since the reference.

    The linearization is taken with the buffers of the reference, which a state holds once, for
    the training probe; the validation probe has to find them there.
    """
    x, y = batches()[0]

    def monitor() -> Monitor:
        return Monitor((x, y), validation_probe=(x.flip(1) + 1.0, y), every_n_steps=2)

    whole, model = monitor(), network()
    train(whole, model, last=6)
    again = monitor()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(None, model, first=6)
    for one in (whole, again):
        one.step(model, step=STEPS)
    assert "ntk/val_linearization_gap" in whole.history
    found, expected = again.history, whole.history
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"ntk/seconds", "ntk/overhead"}:
        assert np.array_equal(found[name], expected[name], equal_nan=True), name
    assert whole.history["ntk/buffer_drift"][-1] > 0.1


def test_state_of_something_else() -> None:
    """It is refused before anything changes."""
    x = torch.randn(4, 2)
    state = Monitor(x).state_dict()
    for part in ("observer", "last_step", "calls", "steps"):
        other = {key: value for key, value in state.items() if key != part}
        monitor = Monitor(x)
        with pytest.raises(ValueError, match=rf"`state` must be .* without '{part}'\. Load"):
            monitor.load_state_dict(other)
        assert monitor.state_dict() == state


def test_a_state_of_an_earlier_release() -> None:
    """Version 1, written out: checkpoints that users have must go on."""
    weight, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    theta = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)  # x xᵀ
    outputs = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    reference = {
        "step": 2,
        "trained": ["weight"],
        "params": {"weight": weight},
        "buffers": {},
        "x": x,
        "y": None,
        "outputs": outputs,
        "kernel": 2 * theta,
    }
    observer = {
        "version": 1,
        "output": "mean",
        "anchor": reference,
        "history": [{"step": 2.0, "drift": 0.0}],
        "previous": [2, 2 * theta],
        "spectra": [],
    }
    state = {
        "observer": observer,
        "last_step": 2,
        "diverged_at": None,
        "validation": {**reference, "params": {}, "x": 3 * x, "outputs": 3 * outputs},
        "calls": 4,
        "steps": 3,
    }
    monitor = Monitor(
        x,
        validation_probe=7 * x,
        at_steps=[5],
        metrics=("drift", "velocity", "param_drift", "linearization_gap"),
    )
    monitor.load_state_dict(state)
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(3 * weight)
    for _ in range(2):
        monitor.step(model)
    found = {name: column[-1] for name, column in monitor.history.items()}
    assert monitor.history["step"] == [2.0, 5.0]
    assert found["ntk/batches"] == 5.0
    assert found["ntk/drift"] == pytest.approx(0.5)  # ‖Θ - 2Θ‖ / ‖2Θ‖
    assert found["ntk/velocity"] == pytest.approx(1.0 / 3.0)  # ‖Θ - 2Θ‖ / ‖Θ‖ in three steps
    assert found["ntk/param_drift"] == pytest.approx(2.0)
    assert found["ntk/linearization_gap"] == pytest.approx(0.0, abs=1e-12)
    assert found["ntk/val_linearization_gap"] == pytest.approx(0.0, abs=1e-12)
    assert found["ntk/val_drift"] == pytest.approx(3.5)  # of 9Θ from 2Θ


def test_a_wrapped_network_and_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    monitor = Monitor(8, every_n_steps=1, metrics=("drift",))
    assert monitor.step(compiled, batch=batches()[0]) is not None
    other = Monitor(8, every_n_steps=1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert other.step(model, batch=batches()[0]) is None
    assert other.finish(model).regime == "unknown"
    assert other.history == {}


def test_a_network_that_diverges() -> None:
    monitor, model = Monitor(8, every_n_steps=1), network()
    monitor.step(model, batch=batches()[0])
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
    with pytest.warns(UserWarning, match="NaN or infinite parameters at step 1"):
        monitor.step(model)
    assert monitor.verdict.regime == "diverged"


def test_several_monitors() -> None:
    model = network()
    start = copy.deepcopy(model.state_dict())
    monitors = [
        Monitor(8, every_n_steps=5, metrics=("drift",)),
        Monitor(4, every_n_steps=5, metrics=("drift",), params=["4.weight"], prefix="readout"),
    ]
    for batch in batches():
        for monitor in monitors:
            monitor.step(model, batch=batch)
    assert monitors[0].history["ntk/drift"] == [0.0, 0.0]
    assert monitors[1].history["readout/drift"] == [0.0, 0.0]
    assert_equal(start, model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"probe": "x"}, TypeError, "probe"),
        ({"log": 3}, TypeError, "log"),
        ({"validation_probe": 8}, ValueError, "validation_probe"),
        ({"every_n_steps": 0}, ValueError, "every_n_steps"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"metrics": ("loss",)}, ValueError, "metrics"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"`{name}` must be"):
        Monitor(**arguments)


def test_a_number_without_a_batch() -> None:
    monitor = Monitor(8)
    with pytest.raises(ValueError, match="`batch` must be given at the first step"):
        monitor.step(network())
    with pytest.raises(ValueError, match="`step` must be"):
        monitor.step(network(), batch=batches()[0], step=-1)


def test_the_plot_has_a_panel_for_each_group() -> None:
    metrics = (*METRICS, "stability", "module_drift")
    monitor, model = Monitor(8, every_n_steps=2, metrics=metrics), network()
    optimizer = train(monitor, model)
    verdict = monitor.finish(model, optimizer)
    figure, axes = monitor.plot()
    assert isinstance(figure, Figure)
    assert [a.get_title() for a in axes] == [
        "is it lazy?",
        "relative movement",
        "alignment with the targets",
        "eigenvalues",
        "rank",
        "speed of the kernel per step",
        "step size against curvature",
        "drift of each module",
    ]
    assert figure._suptitle is not None
    assert figure._suptitle.get_text().replace("\n", " ") == str(verdict)
    drift = axes[0].get_lines()[0]
    assert drift.get_xdata().tolist() == monitor.history["step"]
    assert drift.get_ydata().tolist() == monitor.history["ntk/drift"]
    assert axes[3].get_yscale() == "log"
    modules = {line.get_label() for line in axes[7].get_lines()}
    assert {"0", "1", "4"} <= modules
    figure.canvas.draw()


def test_a_plot_of_little() -> None:
    with pytest.raises(ValueError, match="`history` must be of at least one measurement"):
        Monitor(8).plot()
    figure, axes = history_plot([{"step": 0.0, "lambda_max": 0.0, "lambda_min": float("nan")}])
    assert len(axes) == 1
    figure.canvas.draw()  # nothing positive for a logarithmic axis
