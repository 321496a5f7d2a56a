"""Large networks are evaluated in float32, and their kernels still have small eigenvalues."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk.monitor import METRICS, Monitor, Probe
from torch_ntk.monitor.measure import _evaluation
from torch_ntk.monitor.measure._evaluation import Evaluation
from torch_ntk.monitor.measure._record import Record


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 3))


def observed(record: Record, model: nn.Module) -> dict[str, float]:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    x[1] = x[0] + 1e-4 * x[2]  # an eigenvalue of about 1e-9 of the largest
    record.begin(model, Probe(x, torch.arange(6) % 3), 0)
    record.measure(model, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p))
    return dict(record.measure(model, 1).scalars)


@pytest.mark.parametrize("limit", ["LARGE", "BUSY"])
def test_a_large_network_says_what_float64_says(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = observed(Record(), network())
    monkeypatch.setattr(_evaluation, limit, 100)
    record = Record()
    found = observed(record, network())
    assert record.evaluation.gradient_dtype(network()) == torch.float32
    resumed = Record()
    resumed.load_state_dict(record.state_dict())
    assert resumed.evaluation.gradient_dtype(network()) == torch.float32
    assert record.evaluation.gradient_dtype(network().double()) == torch.float64
    for name in ("drift", "alignment", "linearization_gap", "velocity", "effective_rank"):
        assert found[name] == pytest.approx(exact[name], rel=1e-4), name
    assert found["lambda_min"] / found["lambda_max"] < 1e-8
    assert found["lambda_min"] == pytest.approx(exact["lambda_min"], rel=1e-2)
    assert found["noise_floor"] > 100 * exact["noise_floor"]
    assert found["noise_floor"] < 1e-9 * found["lambda_max"]
    assert found["numerical_rank"] == exact["numerical_rank"] == 6


def test_the_precision_that_is_asked_for() -> None:
    model = network()
    assert Evaluation(dtype=torch.float32).gradient_dtype(model) == torch.float32
    assert Evaluation(dtype=torch.float64).gradient_dtype(model) == torch.float64
    x = torch.randn(4, 5)
    record = Record(METRICS, Evaluation(dtype=torch.float32))
    record.begin(model, Probe(x), 0)
    assert record.reference is not None
    kernel = empirical_ntk(model, x, output="mean", dtype=torch.float32, accumulate=torch.float64)
    assert torch.equal(record.reference.kernel, kernel)


def test_sums_are_in_float64_where_eigenvalues_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_evaluation, "LARGE", 100)
    model, x = network(), torch.randn(4, 5)
    for metrics, sums in ((("drift", "lambda_min"), torch.float64), (("drift",), None)):
        record = Record(metrics)
        record.begin(model, Probe(x), 0)
        assert record.reference is not None
        expected = empirical_ntk(model, x, output="mean", accumulate=sums).double()
        assert record.reference.kernel is not None
        assert record.reference.kernel.dtype == torch.float64
        assert torch.equal(record.reference.kernel, expected)


def test_products_with_vectors_are_in_one_precision() -> None:
    record = Record(METRICS, Evaluation(dtype=torch.float32, method="vector_product"))
    model = network()
    record.begin(model, Probe(torch.randn(4, 5)), 0)
    assert record.reference is not None
    assert record.reference.kernel is not None
    assert record.reference.kernel.dtype == torch.float32
    assert record.evaluation.eigenvalue_precision(model) == torch.finfo(torch.float32).eps


class Stops(nn.Module):
    """A forward whose gradients stop where forward mode does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        with torch.no_grad():
            scale = torch.sigmoid(self.first(x))
        return self.last(h * scale)


@pytest.mark.parametrize("make", [network, Stops])
def test_slopes_of_large_networks(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = observed(Record(), make())
    monkeypatch.setattr(_evaluation, "LARGE", 100)
    monkeypatch.setattr(_evaluation, "HUGE", 100)
    found = observed(Record(), make())
    assert found["linearization_gap"] == pytest.approx(values["linearization_gap"], rel=1e-4)


def test_network_that_cannot_be_evaluated_in_float64() -> None:
    """Such as one with an operation for which PyTorch has no kernel in float64."""

    class Single(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != torch.float32:
                raise RuntimeError("expected Float32, got Double")
            return super().forward(x)

    model = nn.Sequential(Single(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"`dtype` must be torch.float32.*got Double"):
        observed(Record(), model)
    found = observed(Record(METRICS, Evaluation(dtype=torch.float32)), model)
    assert found["linearization_gap"] > 0


def test_a_layer_unfrozen_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_evaluation, "LARGE", 100)
    monkeypatch.setattr(_evaluation, "HUGE", 100)
    gaps = []
    for dtype in (None, torch.float64):
        model = network()
        model[0].requires_grad_(False)
        record = Record(METRICS, Evaluation(dtype=dtype))
        gaps.append(observed(record, model)["linearization_gap"])
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)


def test_imaginary_parts_of_parameters_count() -> None:
    """A network that is linear in its complex weights stays on its linearization."""

    class Phases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.complex(x, -x) @ self.weight).real

    model, record = Phases(), Record(("linearization_gap",))
    record.begin(model, Probe(torch.randn(4, 5)), 0)
    with torch.no_grad():
        model.weight += 0.1j * torch.randn(5, 3)
    assert record.measure(model, 1).scalars["linearization_gap"] < 1e-5


def _scaled(monitor: Monitor | None) -> tuple[list[Tensor], float]:
    """A training in half precision whose first steps the scaler skips, because they overflow."""
    torch.manual_seed(0)
    net = MLP([6, 16, 3])
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=1000)
    for _ in range(8):
        if monitor is not None:
            monitor.step(net, optimizer, (x, y))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = torch.nn.functional.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    if monitor is not None:
        monitor.finish(net, optimizer)
    return [p.detach().clone() for p in net.parameters()], scaler.get_scale()


def test_a_scaler_of_half_precision_on_a_cpu() -> None:
    monitor = Monitor(every_n_steps=1)
    alone, watched = _scaled(None), _scaled(monitor)
    assert watched[1] == alone[1] < 2.0**19  # some steps were skipped, the same ones
    assert all(torch.equal(a, b) for a, b in zip(alone[0], watched[0], strict=True))
    drift = monitor.history["ntk/drift"]
    assert drift[:2] == [0.0, 0.0]  # nothing has moved in a step that was skipped
    assert drift[-1] > 0


@pytest.mark.parametrize("by", [0.0, 1e-9, 1e-7, 1e-2])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_movement_below_rounding_has_no_gap(
    by: float, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 the gap is known or left out; in float64 it is known of smaller movements too."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh())
            self.out = nn.Linear(300, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.net(x)) + offset

    def gap(dtype: torch.dtype | None) -> float | None:
        model, record = Shifted(), Record(("linearization_gap",), Evaluation(dtype=dtype))
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
        record.begin(model, Probe(x), 0)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in model.parameters():
                p += by * torch.randn(p.shape, generator=generator)
        return record.measure(model, 1).scalars.get("linearization_gap")

    exact = gap(torch.float64)
    assert gap(None) == exact  # a network of 90,000 parameters, whose kernel is one in float32
    monkeypatch.setattr(_evaluation, "HUGE", 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gap(None)
    if found is None:
        assert "and float32 knows them to 1e-06" in str(caught[0].message)
        assert by * (1.0 if offset == 0.0 else 1e-4) < 1e-3
    else:
        assert exact is not None
        assert found == pytest.approx(exact, abs=0.03)
