"""`kernel="optimizer"`: J P Jᵀ of the optimizer in use, from its first step on."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torch_ntk import MLP, empirical_ntk
from torch_ntk.metrics import kernel_drift
from torch_ntk.monitor import Monitor, Probe
from torch_ntk.monitor.measure._evaluation import Evaluation
from torch_ntk.monitor.measure._record import Record
from torch_ntk.monitor.stability import Training

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.arange(6) % 2
METRICS = ("drift", "lambda_max", "velocity", "module_drift", "param_drift", "linearization_gap")
OF_KERNEL = ("ntk/drift", "ntk/lambda_max", "ntk/module_drift/0")


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def stepped(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()


def watched(monitor: Monitor, model: nn.Module, optimizer: Any, steps: int) -> list[Tensor]:
    """The kernels of the optimizer at every step after the first."""
    kernels = []
    for step in range(steps):
        if step or monitor.history.get("step"):
            kernels.append(empirical_ntk(model, X, output="mean", precondition=optimizer))
        monitor.step(model, optimizer)
        stepped(model, optimizer)
    return kernels


def monitor_of(**options: Any) -> Monitor:
    return Monitor((X, Y), **{"every_n_steps": 1, "metrics": METRICS, **options})


def test_the_first_kernel_is_that_after_the_first_step(caplog: pytest.LogCaptureFixture) -> None:
    model, monitor = network(), monitor_of(kernel="optimizer")
    optimizer = Adam(model.parameters(), 0.05)
    with caplog.at_level(logging.INFO, logger="torch_ntk.monitor"):
        kernels = watched(monitor, model, optimizer, 4)
    assert "Θ_0 is that of the first measurement after it" in caplog.text
    history = monitor.history
    assert history["step"] == [0, 1, 2, 3]
    for name in OF_KERNEL:
        assert [math.isnan(v) for v in history[name]] == [True, False, False, False], name
    for name in ("ntk/param_drift", "ntk/linearization_gap"):  # from the start, θ_0
        assert history[name][0] == 0.0
        assert all(v > 0.0 for v in history[name][1:])
    assert history["ntk/drift"][1] == 0.0
    for k, theta in enumerate(kernels):
        drift = float(kernel_drift(theta, kernels[0]))
        assert history["ntk/drift"][k + 1] == pytest.approx(drift, rel=1e-10)
        top = float(torch.linalg.eigvalsh(theta)[-1])
        assert history["ntk/lambda_max"][k + 1] == pytest.approx(top, rel=1e-10)
    velocity = float(kernel_drift(kernels[0], kernels[1]))
    assert history["ntk/velocity"][2] == pytest.approx(velocity, rel=1e-10)
    assert history["ntk/module_drift/0"][3] > 0.0


def test_gradient_descent_has_the_same_kernel_from_the_start() -> None:
    rows = []
    for kind in ("gradient", "optimizer"):
        model, monitor = network(), monitor_of(kernel=kind)
        watched(monitor, model, SGD(model.parameters(), 0.1, momentum=0.9), 3)
        rows.append({n: v for n, v in monitor.history.items() if "seconds" not in n})
    for name in OF_KERNEL:
        assert rows[0][name] == rows[1][name]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_has_the_curves_of_one_that_was_not(stop: int) -> None:
    """Stopped before there is a kernel, or after it."""
    model, whole = network(), monitor_of(kernel="optimizer")
    watched(whole, model, Adam(model.parameters(), 0.05), 4)
    model, first = network(), monitor_of(kernel="optimizer")
    optimizer = Adam(model.parameters(), 0.05)
    watched(first, model, optimizer, stop)
    again, state = monitor_of(kernel="optimizer"), copy.deepcopy(first.state_dict())
    again.load_state_dict(state)
    watched(again, model, optimizer, 4 - stop)
    for name in (*OF_KERNEL, "ntk/param_drift"):
        assert str(again.history[name]) == str(whole.history[name])
    other = monitor_of()
    with pytest.raises(ValueError, match="`kernel` must be 'optimizer', as in the run"):
        other.load_state_dict(state)
    assert not other.history.get("step")
    del state["observer"]["kernel"]  # of a run that did not know of the choice
    other.load_state_dict(state)


def test_both_probes_and_adapted_networks() -> None:
    model = network()
    options = {"validation_probe": (X[:3] + 1, Y[:3]), "forward_fn": lambda net, x: net(x)[:, :1]}
    monitor = monitor_of(kernel="optimizer", metrics=("drift",), **options)
    optimizer = Adam(model.parameters(), 0.05)
    kernels = []
    for step in range(3):
        if step:
            kernels.append(
                empirical_ntk(
                    model,
                    X[:3] + 1,
                    output="mean",
                    forward_fn=options["forward_fn"],
                    precondition=optimizer,
                )
            )
        monitor.step(model, optimizer)
        stepped(model, optimizer)
    found = monitor.history["ntk/val_drift"]
    assert math.isnan(found[0])
    assert found[1] == 0.0
    assert found[2] == pytest.approx(float(kernel_drift(kernels[1], kernels[0])), rel=1e-10)


def test_learning_rates_that_vanish() -> None:
    """The ratios of groups are those of the rates that a schedule multiplies, if it says them."""
    values = {}
    for lasts in (True, False):
        model, monitor = network(), monitor_of(kernel="optimizer", metrics=("drift", "param_drift"))
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.01}]
        optimizer = Adam(groups, 0.05)
        last = 1e-9 if lasts else 0.0
        with_a_schedule(monitor, model, optimizer, [1.0, 1.0, last, last, last])
        values[lasts] = monitor.history["ntk/drift"]
    assert [math.isnan(v) for v in values[False]] == [True, False, False, False]
    assert values[False][1:] == pytest.approx(values[True][1:], rel=1e-4)


def test_learning_rates_of_no_relation_leave_a_gap_and_not_a_crash() -> None:
    model, monitor = network(), monitor_of(kernel="optimizer", metrics=("drift", "param_drift"))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.01}]
    with pytest.warns(UserWarning, match="'kernel' is not measured: ") as caught:
        with_a_schedule(monitor, model, Adam(groups, 0.05), is_told=False)
    assert len(caught) == 1
    assert "learning rate 0" in str(caught[0].message)
    assert [math.isnan(v) for v in monitor.history["ntk/drift"]] == [True, False, True, True]
    assert not any(map(math.isnan, monitor.history["ntk/param_drift"]))
    model, monitor = network(), monitor_of(kernel="optimizer", metrics=("drift",))
    with_a_schedule(monitor, model, Adam(model.parameters(), 0.05))  # a single group has P
    assert [math.isnan(v) for v in monitor.history["ntk/drift"]] == [True, False, False, False]


def with_a_schedule(
    monitor: Monitor,
    model: nn.Module,
    optimizer: Optimizer,
    rates: Sequence[float] = (1.0, 1.0, 0.0, 0.0, 0.0),
    is_told: bool = True,
) -> None:
    """Four measurements, by default with learning rates of 0 from the third on."""
    schedule = LambdaLR(optimizer, rates.__getitem__)
    for group in optimizer.param_groups:
        if not is_told:
            group.pop("initial_lr")
    for _ in range(4):
        monitor.step(model, optimizer)
        stepped(model, optimizer)
        schedule.step()


def _unused(model: nn.Module) -> Optimizer:
    optimizer = Adam(model.parameters(), 0.05)
    model[2].requires_grad_(False)
    stepped(model, optimizer)
    model[2].requires_grad_(True)
    return optimizer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: None, "'optimizer': no optimizer is known"),
        (lambda m: Adam(network().parameters()), "no optimizer holds a parameter"),
        (
            lambda m: [SGD(m[0].parameters(), 0.1), SGD(m[2].parameters(), 0.1)],
            "2 optimizers move the network in turn",
        ),
        (lambda m: Adamax(m.parameters()), "Adamax is none of torch.optim's SGD, Adam"),
        (lambda m: SGD(m[0].parameters(), 0.1), "does not hold '2.weight', '2.bias'"),
        (_unused, r"no state for '2.weight', '2.bias'.*params=\["),
    ],
)
def test_trainings_without_a_kernel_of_their_optimizer(make: Any, said: str) -> None:
    model = network()
    optimizer = make(model)
    with pytest.raises(ValueError, match=f"`kernel` must be 'gradient' for this.*{said}") as error:
        monitor_of(kernel="optimizer").step(model, optimizer)
    assert "measures that part" not in str(error.value)


def test_one_of_two_optimizers() -> None:
    model, record = network(), Record(("drift",), Evaluation(params=["2.*"], moved_by="optimizer"))
    both = [Adam(m.parameters(), 0.05) for m in (model[0], model[2])]
    for optimizer in both:
        stepped(model, optimizer)
    record.begin(model, Probe(X, Y), 1, Training(model, both))
    seen = record.measure(model, 1, Training(model, both))
    theta = empirical_ntk(model, X, output="mean", params=["2.*"], precondition=both[1])
    assert seen.kernel is not None
    assert torch.allclose(seen.kernel, theta, rtol=1e-10, atol=0)


def test_what_it_does_not_go_with() -> None:
    with pytest.raises(ValueError, match="`kernel` must be one of 'gradient', 'optimizer'"):
        monitor_of(kernel="adam")
    model, monitor = (
        MLP([4, 8, 2]).double(),
        monitor_of(kernel="optimizer", metrics=("infinite_gap",)),
    )
    with pytest.warns(UserWarning, match="that of gradient descent"):
        monitor.step(model, SGD(model.parameters(), 0.1))


def test_without_a_kernel_there_is_none_to_choose() -> None:
    for metrics in (("stability",), ("linearization_gap", "param_drift")):
        with pytest.raises(ValueError, match="`kernel` must be 'gradient' where no metric takes"):
            Monitor((X, Y), metrics=metrics, kernel="optimizer")
        Monitor((X, Y), metrics=metrics, kernel="gradient")


class Half(nn.Module):
    """Its second layer, which has the name of what adapts networks, is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.network = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_errors_have_the_names_of_the_network_itself(on_error: str) -> None:
    model = Half()
    optimizer = Adam(model.parameters())
    forward_fn: Any = lambda net, x: net(x)  # noqa: E731
    missing = r"no state for 'network\.weight', 'network\.bias', which"
    stepped(model, optimizer)
    monitor = monitor_of(kernel="optimizer", forward_fn=forward_fn, on_error=on_error)
    with (
        pytest.raises(ValueError, match=missing)
        if on_error == "raise"
        else pytest.warns(UserWarning, match=missing)
    ):
        monitor.step(model, optimizer)
    monitor = monitor_of(forward_fn=forward_fn, metrics=("stability",))
    with pytest.warns(UserWarning, match=f"'stability' is not measured: .*{missing}"):
        monitor.step(model, optimizer)
    monitor = monitor_of(forward_fn=forward_fn, metrics=("drift",))
    monitor.step(model, optimizer)
    model.body = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match=r"other parameters or shapes: body\.bias, body\.weight"):
        monitor.step(model, optimizer)
