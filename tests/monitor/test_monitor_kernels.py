"""What is said of a kernel beyond its drift: by module, its velocity, its rank, its limit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles import ntk_loop, reduced
from torch import Tensor, nn

from torch_ntk import NTKLinear, analytic_ntk, empirical_ntk, standard_init_
from torch_ntk.analytic import mlp_kernels
from torch_ntk.monitor import Probe
from torch_ntk.monitor.measure._adapted_network import AdaptedNetwork
from torch_ntk.monitor.measure._evaluation import Evaluation
from torch_ntk.monitor.measure._record import Record


class Net(nn.Module):
    """Two layers and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(self.first(x).tanh())


def probe(n: int = 5) -> Probe:
    generator = torch.Generator().manual_seed(3)
    return Probe(torch.randn(n, 4, generator=generator), torch.arange(n) % 2)


@torch.no_grad()
def move(model: nn.Module, by: float = 0.1) -> None:
    for tensor in model.parameters():
        tensor.add_(by * torch.rand(tensor.shape))


def norm(kernel: Tensor) -> float:
    return float(torch.linalg.vector_norm(kernel))


@pytest.mark.parametrize("output", ["mean", "trace", "full", "pseudo"])
def test_drift_of_each_module(output: str) -> None:
    torch.manual_seed(0)
    model = Net()
    record = Record(("drift", "module_drift"), Evaluation(output=output))  # type: ignore[arg-type]
    record.begin(model, probe(), 0)
    assert record.measure(model, 0).scalars["module_drift/first"] == 0.0
    start = copy.deepcopy(model).double()
    move(model)
    seen = record.measure(model, 1).scalars
    x = probe().x.double()
    now = copy.deepcopy(model).double()
    parts = {
        "self": ["scale"],
        "first": ["first.weight", "first.bias"],
        "last": ["last.weight", "last.bias"],
    }

    def drift(names: list[str] | None) -> float:
        a, b = (reduced(ntk_loop(m, x, x, names), output) for m in (now, start))
        return norm(a - b) / norm(b)

    for name, names in parts.items():
        assert seen[f"module_drift/{name}"] == pytest.approx(drift(names), rel=1e-10)
    assert seen["drift"] == pytest.approx(drift(None), rel=1e-10)


def test_modules_of_an_adapted_network_have_their_own_names() -> None:
    model = AdaptedNetwork(Net(), lambda net, x: net(x))
    record = Record(("module_drift",))
    record.begin(model, probe(), 0)
    names = set(record.measure(model, 0).scalars)
    assert names == {"module_drift/self", "module_drift/first", "module_drift/last", "seconds"}


def test_a_module_whose_part_is_zero() -> None:
    """Behind a layer of zeros no parameter moves the outputs."""
    model = Net()
    nn.init.zeros_(model.last.weight)
    record = Record(("module_drift",))
    record.begin(model, probe(), 0)
    with pytest.warns(UserWarning, match="'module_drift of first' is not measured: .*was 0"):
        seen = record.measure(model, 0).scalars
    assert "module_drift/last" in seen
    assert "module_drift/first" not in seen


def test_velocity() -> None:
    """Per optimizer step, from the measurement before."""
    model = Net()
    record = Record(("velocity",))
    record.begin(model, probe(), 0)
    kernels, found = [], []
    for step in (0, 2, 7):
        seen = record.measure(model, step)
        assert seen.kernel is not None
        kernels.append(seen.kernel)
        found.append(seen.scalars.get("velocity"))
        move(model)
    assert found[0] is None
    for k, steps in ((1, 2), (2, 5)):
        expected = norm(kernels[k] - kernels[k - 1]) / norm(kernels[k]) / steps
        assert found[k] == pytest.approx(expected, rel=1e-12)


def test_velocity_goes_on_from_a_state() -> None:
    model = Net()
    whole = Record(("velocity", "module_drift"))
    whole.begin(model, probe(), 0)
    whole.measure(model, 0)
    move(model)
    again = Record(("velocity", "module_drift"))
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    a, b = whole.measure(model, 3).scalars, again.measure(model, 3).scalars
    del a["seconds"], b["seconds"]
    assert a == b
    assert "velocity" in a
    older = whole.state_dict()
    del older["previous"]
    again.load_state_dict(older)  # from a state without it, one point is missing
    assert "velocity" not in again.measure(model, 4).scalars


def test_rank_and_noise_floor_of_repeated_samples() -> None:
    """Five samples of which two are equal: rank four, and λ_min is no number to rely on."""
    x = probe().x.clone()
    x[4] = x[1]
    record = Record(("lambda_min", "noise_floor", "numerical_rank", "condition"))
    model = Net()
    record.begin(model, Probe(x), 0)
    seen = record.measure(model, 0).scalars
    assert seen["numerical_rank"] == 4.0
    assert 0.0 <= seen["lambda_min"] <= seen["noise_floor"]
    assert seen["condition"] == float("inf")
    assert isinstance(seen["numerical_rank"], float)


def wide(n: int = 64) -> nn.Module:
    return nn.Sequential(
        NTKLinear(4, n, sigma_w=2**0.5, sigma_b=0.2),
        nn.ReLU(),
        NTKLinear(n, 2, sigma_w=2**0.5, sigma_b=0.2),
    )


@pytest.mark.parametrize("output", ["mean", "trace", "full"])
def test_distance_to_the_infinite_network(output: str) -> None:
    torch.manual_seed(1)
    model = wide()
    record = Record(("infinite_gap",), Evaluation(output=output))  # type: ignore[arg-type]
    record.begin(model, probe(), 0)
    move(model)
    got = record.measure(model, 1).scalars["infinite_gap"]
    x = probe().x.double()
    limit = mlp_kernels(x, None, 2, "relu", 2**0.5, 0.2).ntk
    now = reduced(ntk_loop(copy.deepcopy(model).double(), x, x), "mean")
    assert got == pytest.approx(norm(now - limit) / norm(limit), rel=1e-10)


def test_the_gap_to_the_infinite_network_falls_with_the_width() -> None:
    gaps = []
    for n in (64, 4096):
        torch.manual_seed(1)
        record, model = Record(("infinite_gap",)), wide(n)
        record.begin(model, probe(), 0)
        gaps.append(record.measure(model, 0).scalars["infinite_gap"])
    assert gaps[1] < gaps[0] / 3
    assert gaps[1] < 0.05


@pytest.mark.parametrize("scales", [None, (2**0.5, 0.3)])
def test_distance_of_an_ordinary_network(scales: tuple[float, float] | None) -> None:
    """By the initialization that its weights have: the default one, or another one."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 32))
    if scales is not None:
        standard_init_(model, *scales)
    record = Record(("infinite_gap",))
    record.begin(model, probe(), 0)
    x = probe().x.double()
    limit = analytic_ntk(model, x, standard=scales or "torch")
    now = empirical_ntk(copy.deepcopy(model).double(), x, output="mean")
    expected = norm(now - limit) / norm(limit)
    # Drawn in another way, its scales are known as well as its weights determine them.
    accuracy = 1e-9 if scales is None else 0.1
    got = record.measure(model, 0).scalars["infinite_gap"]
    assert got == pytest.approx(expected, abs=accuracy)
    assert got < 0.2


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Net(), {}, "the parameter 'scale' used directly"),
        (wide(), {"params": ["0.weight"]}, "all parameters that require grad"),
    ],
)
def test_networks_without_a_limit(model: nn.Module, options: Any, reason: str) -> None:
    record = Record(("infinite_gap", "drift"), Evaluation(**options))
    with pytest.warns(UserWarning, match=f"'infinite_gap' is not measured: .*{reason}"):
        record.begin(model, probe(), 0)
    seen = record.measure(model, 0).scalars  # without a further word
    assert set(seen) == {"drift", "seconds"}
