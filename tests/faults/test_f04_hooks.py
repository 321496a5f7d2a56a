"""Hooks that collect statistics while gradients are enabled, as second-order optimizers do."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from oracle import (
    WAYS,
    Net,
    built,
    error,
    errors,
    inputs,
    jacobian,
    mean,
    outputs_and_jacobian,
    weight,
)
from torch import Tensor, nn

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk
from torch_ntk.monitor import Monitor


class Statistics:
    """Sums over everything that comes by, and a preconditioner of the gradients from them."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        self.sums: dict[str, Tensor] = {}
        self.calls = 0
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear):
                self._hook(name, module, kind)

    def _hook(self, name: str, module: nn.Linear, kind: str) -> None:
        if kind == "forward pre":
            module.register_forward_pre_hook(lambda m, args: self.add(name, args[0]))
        elif kind == "forward":
            module.register_forward_hook(lambda m, args, out: self.add(name, args[0], out))
        elif kind == "full backward":
            module.register_full_backward_hook(lambda m, gin, gout: self.add(name, gout[0]))
        elif kind == "full backward pre":
            module.register_full_backward_pre_hook(lambda m, gout: self.add(name, gout[0]))
        elif kind == "output":  # a hook on each output, set by one of the module
            module.register_forward_hook(
                lambda m, args, out: (
                    out.requires_grad and out.register_hook(lambda g: self.add(name, g)) and None
                )
            )
        elif kind == "parameter":
            module.weight.register_hook(lambda g: self.add(name, g))
        elif kind == "accumulated":
            module.weight.register_post_accumulate_grad_hook(lambda p: self.add(name, p.grad))

    def add(self, name: str, *tensors: Tensor) -> None:
        """As K-FAC: a running mean of `aᵀa`, if gradients are enabled."""
        self.calls += 1
        if not torch.is_grad_enabled() and len(tensors) != 1:
            return
        for k, t in enumerate(tensors):
            moment = t.detach().reshape(-1, t.shape[-1])
            moment = moment.t() @ moment
            key = f"{name} {k}"
            self.sums[key] = 0.9 * self.sums[key] + 0.1 * moment if key in self.sums else moment


KINDS = (
    "forward pre",
    "forward",
    "full backward",
    "full backward pre",
    "output",
    "parameter",
    "accumulated",
)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def _trained(kind: str, between: Callable[[nn.Module, torch.optim.Optimizer], object]) -> list:
    """Four steps whose size depends on the statistics; all that training leaves behind."""
    torch.manual_seed(5)
    net = built(_net)
    statistics = Statistics(net, kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for k in range(4):
        between(net, optimizer)
        optimizer.zero_grad()
        net(inputs(5, 4, seed=k)).square().mean().backward()
        scale = 1.0 / (1.0 + sum(s.norm() for s in statistics.sums.values()))
        with torch.no_grad():
            for p in net.parameters():
                p.grad.mul_(scale)
        optimizer.step()
    assert statistics.calls >= 8
    return [*net.state_dict().values(), *statistics.sums.values(), torch.tensor(statistics.calls)]


def _same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


X = inputs(3, 4, seed=9)
MEASUREMENTS: dict[str, Callable[[nn.Module], object]] = {
    "auto": lambda net: empirical_ntk(net, X),
    "jacobian": lambda net: empirical_ntk(net, X, method="jacobian"),
    "vector_product": lambda net: empirical_ntk(net, X, method="vector_product"),
    "operator": lambda net: NTKOperator(net, X) @ torch.ones(9, dtype=torch.float64),
    "nngp": lambda net: empirical_nngp(net, X),
}


@functools.cache
def _untouched(kind: str) -> list[Tensor]:
    return _trained(kind, lambda net, optimizer: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_training_is_bitwise_the_same(kind: str, measurement: str) -> None:
    found = _trained(kind, lambda net, optimizer: MEASUREMENTS[measurement](net))
    _same(found, _untouched(kind))


@pytest.mark.parametrize(
    ("kind", "on_error"), [*((k, "raise") for k in KINDS), ("forward", "warn")]
)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_training_with_a_monitor(kind: str, on_error: str) -> None:
    monitor = Monitor(
        (X, torch.tensor([0, 1, 2])),
        every_n_steps=1,
        metrics=("drift", "param_drift", "linearization_gap"),
        on_error=on_error,  # type: ignore[arg-type]
    )
    _same(_trained(kind, monitor.step), _untouched(kind))
    assert monitor.history["step"] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["forward", "full backward", "parameter"])
def test_value(kind: str, way: str) -> None:
    (f_0, j), net = outputs_and_jacobian(built(_net), X), built(_net)
    Statistics(net, kind)
    assert errors(way, net, X, j, f_0) < 1e-10


def test_hooks_that_watch_a_diverged_network_do_not_run() -> None:
    """Outputs that are not finite differ from themselves, which is not the doing of the hooks."""

    def make() -> nn.Module:
        return Net(lambda net, x: net.a(x) / net.scale, a=nn.Linear(4, 3), scale=weight(3))

    net = built(make)
    with torch.no_grad():
        net.scale.zero_()  # type: ignore[operator, union-attr]
        net.a.bias.zero_()  # type: ignore[operator, union-attr]
    seen = Statistics(net, "forward")
    for measurement in MEASUREMENTS.values():
        with pytest.raises(ValueError, match="finite"):
            measurement(net)
    assert seen.calls == 0


def _changed_by_hooks() -> nn.Module:
    net = Net(lambda net, x: net.b(torch.tanh(net.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    net.a.register_forward_pre_hook(lambda m, args: (2 * args[0],))
    net.b.register_forward_hook(lambda m, args, out: out * out)
    return net


@pytest.mark.parametrize("way", WAYS)
def test_hooks_that_change_the_outputs_are_part_of_the_function(way: str) -> None:
    f_0, j = outputs_and_jacobian(built(_changed_by_hooks), X)
    assert errors(way, built(_changed_by_hooks), X, j, f_0) < 1e-10


def test_a_monitor_linearizes_the_function_with_its_hooks() -> None:
    net = built(_changed_by_hooks)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    monitor = Monitor(X, every_n_steps=1, metrics=("linearization_gap",))
    f_0, j = outputs_and_jacobian(net, X)
    theta_0 = torch.cat([p.detach().clone().flatten() for p in net.parameters()])
    monitor.step(net, optimizer)
    net(X).square().sum().backward()
    optimizer.step()
    monitor.step(net, optimizer)
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - theta_0
    f_t = net(X).detach()
    gap = (f_t - f_0 - j @ moved).norm() / (f_t - f_0).norm()
    assert monitor.history["ntk/linearization_gap"][-1] == pytest.approx(gap.item(), rel=1e-6)


def test_hooks_that_are_part_of_the_function_count() -> None:
    make = _changed_by_hooks
    expected = mean(jacobian(built(make), X))
    for method in ("auto", "jacobian", "vector_product"):
        found = empirical_ntk(built(make), X, output="mean", method=method)  # type: ignore[arg-type]
        assert error(found, expected) < 1e-10
