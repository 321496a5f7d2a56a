"""A record alone, without a trainer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles import jacobian_loop
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_ntk.monitor import METRICS, Monitor, Probe
from torch_ntk.monitor.measure import _evaluation, _record
from torch_ntk.monitor.measure._evaluation import Evaluation
from torch_ntk.monitor.measure._record import Record
from torch_ntk.monitor.reference._reference import has_diverged


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)
    )


def probe(n: int = 5) -> Probe:
    generator = torch.Generator().manual_seed(3)
    return Probe(torch.randn(n, 4, generator=generator), torch.arange(n) % 2)


@torch.no_grad()
def move(model: nn.Module, by: float = 0.05) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.add_(by * torch.rand(tensor.shape))


def begun(model: nn.Module, metrics: tuple[str, ...] = METRICS, **options: Any) -> Record:
    record = Record(metrics, Evaluation(**options))
    record.begin(model, probe(), 0)
    return record


def test_at_the_reference_nothing_has_moved() -> None:
    model = network()
    seen = begun(model).measure(model, 0)
    for name in ("drift", "param_drift", "linearization_gap", "buffer_drift"):
        assert seen.scalars[name] == 0.0
    assert set(METRICS) - set(seen.scalars) == {"velocity", "statistics_share"}
    assert "anchor_step" not in seen.scalars
    assert seen.kernel is not None
    assert seen.kernel.dtype == torch.float64


def test_the_size_of_blocks_changes_nothing() -> None:
    rows = []
    for size in (None, 1, 2, 5):
        torch.manual_seed(0)
        model = network()
        record = begun(model, batch_size=size)
        move(model)
        scalars = record.measure(model, 1).scalars
        rows.append([v for k, v in scalars.items() if k != "seconds"])
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-9)


def test_a_linearization_in_many_blocks() -> None:
    """More samples than one block holds, against the Jacobian at the reference."""
    model = network()
    many = Probe(probe(40).x)
    record = Record(("linearization_gap",))
    record.begin(model, many, 0)
    start = copy.deepcopy(model).double()
    move(model)
    seen = record.measure(model, 1)
    assert seen.linearized is not None
    jacobian = jacobian_loop(start, many.x.double())
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    delta = torch.cat([(p.double() - q).reshape(-1) for p, q in pairs])
    with torch.no_grad():
        expected = start(many.x.double()) + jacobian @ delta
    assert torch.allclose(seen.linearized, expected, rtol=1e-11, atol=1e-12)


def test_float32_on_request() -> None:
    model = network()
    single, double = begun(model, dtype=torch.float32), begun(model)
    move(model)
    a, b = single.measure(model, 1), double.measure(model, 1)
    assert a.kernel is not None
    assert a.kernel.dtype == torch.float64  # of gradients in float32
    assert a.scalars["drift"] == pytest.approx(b.scalars["drift"], rel=1e-4)


def test_the_reference_is_a_copy() -> None:
    model, samples = network(), probe()
    record = Record()
    record.begin(model, samples.first(5), 0)
    before = copy.deepcopy(record.state_dict()["anchor"])
    move(model)
    record.measure(model, 1)
    after = record.state_dict()["anchor"]
    for part in ("params", "buffers"):
        assert all(torch.equal(before[part][n], after[part][n]) for n in before[part])
    assert torch.equal(before["kernel"], after["kernel"])


def test_state_and_back() -> None:
    model = network()
    record = begun(model)
    record.measure(model, 0)
    move(model)
    again = Record()
    again.load_state_dict(copy.deepcopy(record.state_dict()))
    a, b = record.measure(model, 3).scalars, again.measure(model, 3).scalars
    del a["seconds"], b["seconds"]
    assert a == b
    assert [row["step"] for row in again.history] == [0.0, 3.0]
    assert [step for step, _ in again.spectra] == [0, 3]


@pytest.mark.parametrize("state", [None, {}, {"version": 2}, {"version": 1, "output": "mean"}])
def test_a_state_that_cannot_be_read(state: Any) -> None:
    with pytest.raises(ValueError, match="`state` must be"):
        Record().load_state_dict(state)


def test_measured_before_it_is_begun() -> None:
    with pytest.raises(ValueError, match="anchored before it is measured"):
        Record().measure(network(), 0)


def test_another_network() -> None:
    record = begun(network())
    with pytest.raises(ValueError, match=r"other parameters or shapes: 0\.bias, 0\.weight"):
        record.measure(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2)), 1)
    assert record.history == []


def test_a_late_reference_says_so_once() -> None:
    model = network()
    record = Record(("param_drift",))
    record.begin(model, probe(), 7)
    assert record.measure(model, 7).scalars["anchor_step"] == 7.0
    assert "anchor_step" not in record.measure(model, 8).scalars


class Once(torch.autograd.Function):
    """A square whose derivative cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(self.layer(x))


def test_without_a_second_derivative() -> None:
    model = Squares()
    record = begun(model, metrics=("linearization_gap",))
    start = copy.deepcopy(model).double()
    move(model, 0.5)
    seen = record.measure(model, 1)
    x = probe().x.double()
    with torch.no_grad():
        f_0 = start.layer(x)
        f_t = copy.deepcopy(model).double().layer(x)
    # (a + d)² is a² + 2ad in the first order
    assert torch.allclose(seen.linearized, f_0**2 + 2 * f_0 * (f_t - f_0), rtol=1e-12)  # type: ignore[arg-type]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("metrics", [("linearization_gap",), ("drift",)])
def test_activation_checkpointing_is_passed_over(reentrant: bool, metrics: tuple[str, ...]) -> None:
    """Recomputed activations would be those of θ_t where those of θ_0 are meant."""
    record, other = Record(metrics), Record(metrics)
    model = Checkpointed(reentrant)
    plain = nn.Sequential(copy.deepcopy(model.first), copy.deepcopy(model.last))
    record.begin(model, probe(), 0)
    other.begin(plain, probe(), 0)
    with torch.no_grad():
        for net in (model, plain):
            for p in net.parameters():
                p.mul_(1.1)
    (metric,) = metrics
    expected = other.measure(plain, 1).scalars[metric]
    assert expected > 0
    assert record.measure(model, 1).scalars[metric] == expected


def test_a_network_that_does_not_move() -> None:
    """No output depends on the parameters that change: the slope is 0, not an error."""

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.used = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.used * x[:, :2]

    model = Still()
    record = begun(model, metrics=("linearization_gap",))
    with torch.no_grad():
        model.unused += 1.0
    assert record.measure(model, 1).scalars["linearization_gap"] == 0.0
    model.used.requires_grad_(False)
    with pytest.raises(ValueError, match="connects to none of them"):
        begun(model, metrics=("linearization_gap",))


def test_a_layer_that_is_unfrozen_is_not_in_the_kernel() -> None:
    model = network()
    model[0].requires_grad_(False)
    record = begun(model, metrics=("drift",))
    record.measure(model, 0)
    model[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"frozen at step 0.*'0\.bias' and 1 more.*anchor_at"):
        record.measure(model, 1)
    record.measure(model, 2)  # the warning comes once; others are errors in these tests

    model[0].requires_grad_(False)
    chosen = begun(model, metrics=("drift",), params=["4.*"])
    model[0].requires_grad_(True)
    chosen.measure(model, 1)


def test_diverged() -> None:
    model = network()
    assert not has_diverged(model)
    with torch.no_grad():
        model[1].running_mean[0] = float("inf")  # type: ignore[index, operator, union-attr]
        assert not has_diverged(model)
        model[1].running_mean[0] = float("nan")  # type: ignore[index, operator, union-attr]
        assert has_diverged(model)
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")  # type: ignore[index, operator, union-attr]
    assert has_diverged(model)


def test_bad_metrics_say_what_there_is() -> None:
    with pytest.raises(TypeError, match=r"Choose from drift, .*lambda_min, .*metrics=.'drift',."):
        Record("drift")


@pytest.mark.parametrize(
    ("seconds", "probe", "output", "samples", "kind"),
    [
        (29.0, None, None, 12, "mean"),
        (60.0, None, None, 12, "probed"),  # 8 directions of 20 outputs are 24 s
        (120.0, None, None, 8, "probed"),  # 48 s, of which 8 samples take 32
        (120.0, 12, None, 12, "probed"),  # what was asked for stays
        (120.0, None, "mean", 8, "mean"),
        (120.0, 12, "mean", 12, "mean"),
    ],
)
def test_what_would_take_too_long_is_taken_of_less(
    seconds: float,
    probe: int | None,
    output: Any,
    samples: int,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_evaluation.Evaluation, "seconds", lambda *_: seconds)
    monkeypatch.setattr(_evaluation.Evaluation, "seconds_of_step", lambda *_: 4.0)  # 8 are 32 s
    monkeypatch.setattr(_record, "_TRIED", 0)
    said: list[str] = []
    monitor = Monitor(probe, output=output, metrics=("drift",))
    monitor._session.say = said.append
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 20))
    batch = (torch.randn(12, 4), torch.arange(12) % 20)
    monitor.step(net, batch=batch)
    reference = monitor._session.record.reference
    assert reference is not None
    assert (len(reference.probe), monitor._session.record.evaluation.output) == (samples, kind)
    assert len(said) == (seconds > 30.0)
    if said:
        assert f"would take about {seconds:.0f} s for 12 samples of 20 outputs" in said[0]
        assert f"takes {samples} samples" in said[0]
    again = Monitor(probe, output=output, metrics=("drift",))
    again.load_state_dict(monitor.state_dict())
    again.step(net, batch=batch, step=5)
    assert len(again.history["step"]) == 2


@pytest.mark.parametrize(
    ("seconds", "options", "length", "samples"),
    [
        (0.4, {}, None, 64),  # a moment, whatever a step takes
        (10.24, {}, None, 32),  # a step of 128 samples takes 0.64 s: eight steps are half of it
        (10.24, {"metrics": ("drift", "linearization_gap")}, None, 16),  # 0.48 s more for slopes
        (10.24, {}, 200, 16),  # 5 % of 200 steps are ten, for the first and the last measurement
        (10.24, {"every_n_steps": 50}, 200, 32),  # which is what the caller has asked for
        (10.24, {"max_overhead": 0.5}, 200, 32),
        (10.24, {}, 10, 8),  # 3 of them in half a second, but not fewer than 8
        (10.24, {"probe": 64}, 10, 64),
    ],
)
def test_a_measurement_is_long_beside_training_steps(
    seconds: float,
    options: dict[str, Any],
    length: int | None,
    samples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(evaluation: Any, network: Any, names: Any, probe: Any) -> float:
        return 0.005 * len(probe)

    monkeypatch.setattr(_evaluation.Evaluation, "seconds", lambda *_: seconds)
    monkeypatch.setattr(_evaluation.Evaluation, "seconds_of_step", step)
    monkeypatch.setattr(_record, "_TRIED", 0)
    monitor = Monitor(**{"metrics": ("drift",), "total_steps": length, **options})
    said: list[str] = []
    monitor._session.say = said.append
    batch = (torch.randn(128, 4), torch.arange(128) % 2)
    monitor.step(nn.Sequential(nn.Linear(4, 2)), batch=batch)
    reference = monitor._session.record.reference
    assert reference is not None
    assert len(reference.probe) == samples
    assert len(said) == (samples < 64)
