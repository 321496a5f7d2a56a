"""Hooks of the user that keep statistics: training with a monitor is bitwise the one without.

The hooks write to an object that no module knows, as K-FAC and activation statistics do, whenever
gradients are enabled; a measurement enables them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_loop import assert_equal
from torch import Tensor, nn

from torch_ntk.monitor import METRICS, Monitor

# Torch says so of the first layer in any training: its inputs are data.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients")

STEPS, ROWS = 4, 8


class Statistics:
    """Sums and counts by name, kept while gradients are enabled."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        self.keep(name, value)

    def keep(self, name: str, value: Tensor) -> None:
        value = value.detach()
        before = self.sums.get(name)
        self.sums[name] = value.clone() if before is None else 0.9 * before + 0.1 * value
        self.counts[name] = self.counts.get(name, 0) + 1


Attach = Callable[[nn.Module, Statistics], None]


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Tanh))]


def forward(model: nn.Module, seen: Statistics) -> None:
    for name, layer in layers(model):
        layer.register_forward_hook(lambda m, x, y, n=name: seen.add(n, y.mean(0)))


def forward_pre(model: nn.Module, seen: Statistics) -> None:
    for name, layer in layers(model):
        layer.register_forward_pre_hook(lambda m, x, n=name: seen.add(n, x[0].mean(0)))


def of_the_whole(model: nn.Module, seen: Statistics) -> None:
    """On the module that is passed to the monitor itself."""
    model.register_forward_pre_hook(lambda m, x: seen.add("in", x[0].mean(0)))
    model.register_forward_hook(lambda m, x, y: seen.add("out", y.mean(0)))


def backward(model: nn.Module, seen: Statistics) -> None:
    for name, layer in layers(model):
        layer.register_full_backward_hook(lambda m, gx, gy, n=name: seen.keep(n, gy[0].mean(0)))


def backward_pre(model: nn.Module, seen: Statistics) -> None:
    for name, layer in layers(model):
        layer.register_full_backward_pre_hook(lambda m, gy, n=name: seen.keep(n, gy[0].mean(0)))


def of_parameters(model: nn.Module, seen: Statistics) -> None:
    for name, p in model.named_parameters():
        p.register_hook(lambda grad, n=name: seen.keep(n, grad))


def after_accumulation(model: nn.Module, seen: Statistics) -> None:
    def of(name: str) -> Callable[[Tensor], None]:
        def keep(p: Tensor) -> None:
            assert p.grad is not None
            seen.keep(name, p.grad)

        return keep

    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(of(name))


def everything(model: nn.Module, seen: Statistics) -> None:
    for attach in (forward, backward, of_parameters):
        attach(model, seen)


ATTACH: list[Attach] = [
    *(forward, forward_pre, of_the_whole, backward, backward_pre),
    *(of_parameters, after_accumulation, everything),
]


class KFAC(torch.optim.Optimizer):
    """Natural gradients by Kronecker factors of the Linear layers, from what hooks collected.

    The gradient G `[out, in]` of a weight becomes (B + c)^-1 G (A + c)^-1, A the running second
    moment of the layer's inputs and B the one of the gradients of its outputs.
    """

    def __init__(self, model: nn.Module, seen: Statistics, lr: float = 0.05) -> None:
        super().__init__(list(model.parameters()), {"lr": lr})
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.seen = seen
        for k, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(
                lambda m, x, k=k: seen.add(f"A{k}", x[0].mT @ x[0] / len(x[0]))
            )
            layer.register_full_backward_hook(
                lambda m, gx, gy, k=k: seen.keep(f"B{k}", gy[0].mT @ gy[0] * len(gy[0]))
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        lr = self.param_groups[0]["lr"]
        for k, layer in enumerate(self.layers):
            a, b = self.seen.sums[f"A{k}"], self.seen.sums[f"B{k}"]
            a, b = a + 0.1 * torch.eye(len(a)), b + 0.1 * torch.eye(len(b))
            step = torch.linalg.solve(b, torch.linalg.solve(a, layer.weight.grad.mT).mT)
            layer.weight -= lr * step
            layer.bias -= lr * layer.bias.grad


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(STEPS, ROWS, 6, generator=generator)
    return [(b, b[:, :3].argmax(1)) for b in x]


def trained(
    attach: Attach | None, metrics: tuple[str, ...] | None, kind: str = "sgd"
) -> tuple[Any, Monitor | None]:
    """Weights, statistics and gradients after a training; with a monitor if there are metrics."""
    model, seen = network(), Statistics()
    if attach is not None:
        attach(model, seen)
    optimizer = (
        KFAC(model, seen)
        if kind == "kfac"
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    monitor = None if metrics is None else Monitor(5, every_n_steps=1, metrics=metrics)
    for batch in batches():
        if monitor is not None:
            monitor.step(model, optimizer, batch)
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    if monitor is not None:
        monitor.finish(model, optimizer)
    grads = [p.grad for p in model.parameters()]
    return (model.state_dict(), seen.sums, seen.counts, grads), monitor


CHOICES = [
    ("param_drift",),
    METRICS,
    (*METRICS, "stability", "module_drift", "nngp_rank"),
]
NAMES = ["param_drift", "default", "on_request"]


@pytest.mark.parametrize("metrics", CHOICES, ids=NAMES)
@pytest.mark.parametrize("attach", ATTACH, ids=lambda a: a.__name__)
def test_statistics_are_those_of_training_alone(attach: Attach, metrics: tuple[str, ...]) -> None:
    plain, _ = trained(attach, None)
    watched, monitor = trained(attach, metrics)
    assert plain[2]
    assert_equal(plain, watched)
    assert monitor is not None
    assert monitor.history["step"] == list(range(STEPS + 1))


@pytest.mark.parametrize("metrics", CHOICES[:2], ids=NAMES[:2])
def test_an_optimizer_that_reads_what_hooks_collect(metrics: tuple[str, ...]) -> None:
    """The trained weights depend on every call of a hook."""
    plain, _ = trained(None, None, "kfac")
    watched, monitor = trained(None, metrics, "kfac")
    assert_equal(plain, watched)
    assert monitor is not None
    assert monitor.history["ntk/param_drift" if "param_drift" in metrics else "step"][-1] > 0.0


@pytest.mark.parametrize("attach", ATTACH, ids=lambda a: a.__name__)
def test_the_values_are_those_without_hooks(attach: Attach) -> None:
    _, plain = trained(None, METRICS)
    _, watched = trained(attach, METRICS)
    assert plain is not None
    assert watched is not None
    for name in plain.history.keys() - {"ntk/seconds", "ntk/overhead"}:
        expected = pytest.approx(plain.history[name], rel=1e-12, abs=1e-13, nan_ok=True)
        assert watched.history[name] == expected, name
