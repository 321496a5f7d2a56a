"""The registry: each metric against what it means, written out, and where it is shown.

A metric has one row in `MEANT`: its values by their logged names, from a plain loop of backward
passes in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
import torch.nn.functional as F
from oracles import jacobian_loop, ntk_loop, reduced
from torch import Tensor, nn

from torch_ntk import NTKLinear
from torch_ntk._checks import UndefinedError
from torch_ntk.analytic import mlp_kernels
from torch_ntk.monitor import MEANINGS, METRICS, OPTIONAL, Probe
from torch_ntk.monitor.measure import PANELS
from torch_ntk.monitor.measure._metrics import REGISTRY, curve_of
from torch_ntk.monitor.measure._record import Record
from torch_ntk.monitor.stability import Training

N, OUTPUTS, LR, STEPS = 6, 3, 0.05, 4
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


class Net(nn.Sequential):
    """Two NTK layers, and running statistics that training moves."""

    def __init__(self) -> None:
        super().__init__(NTKLinear(4, 8, sigma_w=2**0.5), nn.ReLU(), NTKLinear(8, OUTPUTS))
        self.register_buffer("mean", torch.tensor([3.0, 4.0]))


@dataclass
class Run:
    """Three measured networks of a training, at steps 0, 1 and 1 + STEPS."""

    start: nn.Module
    before: nn.Module
    now: nn.Module
    x: Tensor

    def theta(self, network: nn.Module, names: list[str] | None = None) -> Tensor:
        return reduced(ntk_loop(network, self.x, self.x, names), "mean")

    @cached_property
    def kernel(self) -> Tensor:
        return self.theta(self.now)

    @cached_property
    def eigenvalues(self) -> Tensor:
        return torch.linalg.svdvals(self.kernel).flip(0)  # a symmetric positive matrix

    @cached_property
    def outputs(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.start(self.x), self.now(self.x)

    @property
    def jacobian(self) -> Tensor:
        return jacobian_loop(self.now, self.x).reshape(N * OUTPUTS, -1)


def norm(tensor: Tensor) -> float:
    return float(tensor.square().sum().sqrt())


def distance(a: Tensor, b: Tensor) -> float:
    return norm(a - b) / norm(b)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum()) / norm(a) / norm(b)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def entropic(eigenvalues: Tensor) -> float:
    p = eigenvalues / eigenvalues.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))


def alignment(run: Run) -> dict[str, float]:
    y = torch.eye(OUTPUTS, dtype=torch.float64)[LABELS] - 1 / OUTPUTS
    gram = y @ y.T
    return {"alignment": cosine(run.kernel, gram)}


def linearization_gap(run: Run) -> dict[str, float]:
    f_0, f_t = run.outputs
    slopes = jacobian_loop(run.start, run.x) @ (flat(run.now) - flat(run.start))
    return {"linearization_gap": norm(f_t - f_0 - slopes) / norm(f_t - f_0)}


def stability(run: Run) -> dict[str, float]:
    f_t = run.outputs[1]
    second = torch.autograd.functional.hessian(
        lambda f: F.cross_entropy(f.reshape(N, OUTPUTS), LABELS), f_t.flatten()
    )
    top = float(torch.linalg.eigvalsh(run.jacobian.T @ second @ run.jacobian)[-1])
    return {"stability": LR * top, "stability_limit": 2.0, "sharpness": top}


def module_drift(run: Run) -> dict[str, float]:
    found = {}
    for module in ("0", "2"):
        names = [f"{module}.weight", f"{module}.bias"]
        found[f"module_drift/{module}"] = distance(
            run.theta(run.now, names), run.theta(run.start, names)
        )
    return found


def infinite_gap(run: Run) -> dict[str, float]:
    # The layers differ in sigma_w: the kernel after one hidden layer, and a last layer of its own.
    hidden = mlp_kernels(run.x, None, 2, "relu", 2**0.5, 0.1)
    nngp = (hidden.nngp - 0.1**2) / 2
    ntk = (hidden.ntk - hidden.nngp) / 2
    return {"infinite_gap": distance(run.kernel, ntk + nngp + 0.1**2)}


MEANT: dict[str, Callable[[Run], dict[str, float]]] = {
    "drift": lambda run: {"drift": distance(run.kernel, run.theta(run.start))},
    "kernel_distance": lambda run: {
        "kernel_distance": 1.0 - cosine(run.kernel, run.theta(run.start))
    },
    "lambda_min": lambda run: {"lambda_min": float(run.eigenvalues[0])},
    "lambda_max": lambda run: {"lambda_max": float(run.eigenvalues[-1])},
    "condition": lambda run: {"condition": float(run.eigenvalues[-1] / run.eigenvalues[0])},
    "effective_rank": lambda run: {"effective_rank": entropic(run.eigenvalues)},
    "alignment": alignment,
    "param_drift": lambda run: {
        "param_drift": distance(flat(run.now), flat(run.start)),
        "buffer_drift": 1.0 / 5.0,
    },
    "linearization_gap": linearization_gap,
    "statistics_share": lambda run: {},  # its network has none; see test_monitor_statistics.py
    "velocity": lambda run: {
        "velocity": norm(run.kernel - run.theta(run.before)) / norm(run.kernel) / STEPS
    },
    "numerical_rank": lambda run: {"numerical_rank": float(N)},
    "noise_floor": lambda run: {"noise_floor": N * 2.0**-52 * float(run.eigenvalues[-1])},
    "stability": stability,
    "critical_sharpness": lambda run: {},  # see test_monitor_last_step.py
    "module_drift": module_drift,
    "infinite_gap": infinite_gap,
    "nngp_rank": lambda run: {
        "nngp_rank": entropic(torch.linalg.svdvals(run.outputs[1]).square()),
    },
}


@torch.no_grad()
def move(network: nn.Module, by: float) -> None:
    for p in network.parameters():
        p.add_(by * torch.randn(p.shape, dtype=p.dtype))


@pytest.mark.parametrize("name", MEANT)
def test_a_metric_alone_has_the_value_that_it_means(name: str) -> None:
    torch.manual_seed(1)
    network = Net().double()
    x = torch.randn(N, 4, dtype=torch.float64)
    record = Record((name,))
    record.begin(network, Probe(x, LABELS), 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    training = Training(network, [optimizer])
    stages = [copy.deepcopy(network)]
    first = record.measure(network, 0, training).scalars
    for step in (1, 1 + STEPS):
        move(network, 0.1)
        network.mean = torch.tensor([3.0, 5.0]).double()
        stages.append(copy.deepcopy(network))
        found = record.measure(network, step, training).scalars
    expected = MEANT[name](Run(*stages, x))
    assert found.keys() - {"seconds"} == expected.keys()
    assert first.keys() <= found.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9), key
        assert type(found[key]) is float


def test_every_metric_is_shown_and_explained() -> None:
    assert set(MEANT) == set(REGISTRY) == {*METRICS, *OPTIONAL} == set(MEANINGS)
    for metric in REGISTRY.values():
        assert metric.meaning
        for curve in (*metric.curves, *metric.validation_curves):
            assert curve.panel in PANELS
            assert curve_of(curve.name) == curve
    shown = curve_of("module_drift/a.b")
    assert shown is not None
    assert shown.panel.title == "drift of each module"
    assert curve_of("seconds") is None


@pytest.mark.parametrize("error", [UndefinedError, TypeError, ValueError])
def test_only_a_value_that_is_not_defined_is_left_out(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in a metric is not taken for one that has no value here."""

    def fails(now: object) -> float:
        raise error("without a norm")

    monkeypatch.setitem(REGISTRY, "drift", replace(REGISTRY["drift"], compute=fails))
    network, record = Net().double(), Record(("drift",))
    record.begin(network, Probe(torch.randn(N, 4, dtype=torch.float64), LABELS), 0)
    if error is UndefinedError:
        with pytest.warns(UserWarning, match="drift.*without a norm"):
            assert "drift" not in record.measure(network, 1).scalars
    else:
        with pytest.raises(error, match="without a norm"):
            record.measure(network, 1)


def test_what_nobody_asks_for_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank of the outputs takes no kernel; what several metrics need is computed once."""
    network = Net().double()
    probe = Probe(torch.randn(N, 4, dtype=torch.float64), LABELS)
    record = Record(("nngp_rank", "linearization_gap"))
    calls: list[str] = []
    kind = type(record.evaluation)
    for method in ("kernel", "outputs"):
        own = getattr(kind, method)

        def counted(*given: object, _own: Callable[..., Tensor] = own, _m: str = method) -> Tensor:
            calls.append(_m)
            return _own(*given)

        monkeypatch.setattr(kind, method, counted)
    record.begin(network, probe, 0)
    record.measure(network, 0)  # f_0 is there
    assert calls == ["outputs"]
    move(network, 0.1)
    seen = record.measure(network, 1)
    assert calls == ["outputs"] * 2
    assert seen.kernel is None
    assert seen.eigenvalues is None
    assert seen.outputs is not None
