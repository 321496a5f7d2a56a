"""`"critical_sharpness"`: the curvature along the step just taken, of any optimizer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk.monitor import Monitor
from torch_ntk.monitor.stability._critical_step import critical_multiple

N = 8
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(N, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
SHARPNESS, LIMIT = "ntk/critical_sharpness", "ntk/critical_sharpness_limit"


def monitor_of(x: Tensor = X, y: Tensor = Y, **options: Any) -> Monitor:
    given = {"every_n_steps": 1, "metrics": ("critical_sharpness",), **options}
    return Monitor((x, y), **given)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"weight_decay": 0.3}),
        (torch.optim.Adamax, {}),
        (torch.optim.Rprop, {}),
    ],
)
@pytest.mark.parametrize("outputs", [2, 70])
def test_on_a_quadratic_it_is_the_curvature_of_the_step(
    kind: Any, options: dict[str, Any], outputs: int
) -> None:
    """uᵀHu / gᵀu for a step -lr u, H and g those of the loss before it."""
    torch.manual_seed(0)
    model = nn.Linear(4, outputs).double()
    y = torch.randn(N, outputs, dtype=torch.float64)
    optimizer = kind(model.parameters(), lr=0.02, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    monitor, expected, rates = monitor_of(y=y, batch_size=3), [], []
    for _ in range(4):
        monitor.step(model, optimizer)
        optimizer.zero_grad()
        F.mse_loss(model(X), y).backward()
        g = torch.cat([p.grad.flatten() for p in model.parameters()])
        before, lr = flat(model), optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        u = (before - flat(model)) / lr
        # The quadratic part of the loss: the mean square of what u adds to the outputs.
        weight, bias = u[: 4 * outputs].reshape(outputs, 4), u[4 * outputs :]
        curvature = 2.0 * (X @ weight.T + bias).square().mean()
        expected.append(float(curvature / (g @ u)))
        rates.append(lr)
    monitor.finish(model, optimizer)
    history = monitor.history
    assert math.isnan(history[SHARPNESS][0])
    assert history[SHARPNESS][1:] == pytest.approx(expected, rel=2e-3)
    assert history[LIMIT][1:] == pytest.approx([2.0 / lr for lr in rates])


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


@pytest.mark.parametrize("recalibrate", [True, False])
def test_there_the_loss_is_that_before_the_step(recalibrate: bool) -> None:
    """Of a network with normalization: with the probe's statistics, or with those that it has."""
    model, labels = Normalized().double(), torch.arange(N) % 3
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    monitor = monitor_of(y=labels, recalibrate=recalibrate)
    monitor.step(model, optimizer)
    before = copy.deepcopy(model)
    F.cross_entropy(model(X), labels).backward()
    optimizer.step()
    monitor.finish(model, optimizer)
    multiple = 2.0 / (monitor.history[SHARPNESS][1] * 0.3)

    def loss(c: float) -> float:
        at = copy.deepcopy(before)
        for p, q in zip(at.parameters(), model.parameters(), strict=True):
            p.data += c * (q.data - p.data)
        if recalibrate:  # of its only normalization, as one pass in training mode finds them
            at.norm.momentum = 1.0
            at.train()(X)
            at.eval()
        return float(F.cross_entropy(at(X), labels).detach())

    gain = loss(0.0) - min(loss(multiple * k / 20) for k in range(20))
    assert gain > 1e-3
    assert abs(loss(multiple) - loss(0.0)) < 0.01 * gain
    assert multiple > 1.0


def test_losses_with_weights_and_adapted_networks() -> None:
    """Targets of another shape and weights in float32 are no hindrance."""
    torch.manual_seed(0)
    model, labels = nn.Linear(4, 3), torch.arange(N) % 3
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    plain = monitor_of(X.float(), labels, loss=loss)
    named = monitor_of(X.float(), labels, loss=loss, forward_fn=lambda net, x: net(x))
    for _ in range(3):
        for monitor in (plain, named):
            monitor.step(model, optimizer)
        optimizer.zero_grad()
        loss(model(X.float()), labels).backward()
        optimizer.step()
    assert str(named.history[SHARPNESS]) == str(plain.history[SHARPNESS])
    assert 0.0 < plain.history[SHARPNESS][-1] < plain.history[LIMIT][-1]


def test_training_is_bitwise_what_it_is_without() -> None:
    results = []
    for watched in (True, False):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        monitor, x, y = monitor_of(on_error="raise"), X.float(), Y.float()
        for _ in range(4):
            if watched:
                monitor.step(model, optimizer)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        results.append([*model.state_dict().values(), torch.get_rng_state(), torch.rand(2)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_step_that_goes_up_is_left_out_and_said() -> None:
    model = nn.Linear(4, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    monitor = monitor_of()

    def run() -> None:
        for _ in range(4):
            monitor.step(model, optimizer)
            F.mse_loss(model(X), Y).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="raises the loss on the probe however short") as caught:
        run()
    assert sum("however short" in str(w.message) for w in caught) == 1
    assert SHARPNESS not in monitor.history


def test_only_single_steps_count() -> None:
    """Batches that are accumulated are one step; where steps were not seen there is no value."""
    model = nn.Linear(4, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor, seen = monitor_of(), []
    for step in (0, 0, 1, 1, 3, 4):
        if step != (seen[-1] if seen else 0):
            optimizer.step()
            optimizer.zero_grad()
        monitor.step(model, optimizer, step=step)
        F.mse_loss(model(X), Y).backward()
        seen.append(step)
    values = torch.tensor(monitor.history[SHARPNESS])
    assert monitor.history["step"] == [0, 1, 3, 4]
    monitor.finish(model, optimizer, step=4)
    assert monitor._session.record._last_step(5) is None  # no copy of the parameters is kept
    assert values.isfinite().tolist() == [False, True, False, True]


def test_two_optimizers_have_no_step_in_common() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    monitor = monitor_of()
    monitor.step(model, optimizers)
    F.mse_loss(model(X), Y).backward()
    for optimizer in optimizers:
        optimizer.step()
    with pytest.warns(UserWarning, match="2 optimizers move the network"):
        monitor.step(model, optimizers)


@pytest.mark.parametrize("root", [0.3, 1.0, 1.7, 40.0, 0.002])
def test_where_a_loss_comes_back_to_its_start(root: float) -> None:
    found = critical_multiple(lambda c: math.inf if c > 3 * root else c * (c - root))
    assert found == pytest.approx(root, rel=2e-3)
    wall = critical_multiple(lambda c: math.nan if c > root else -c)
    assert wall == pytest.approx(root, rel=0.03)


def test_losses_that_never_come_back_or_never_go_down() -> None:
    calls: list[float] = []
    assert critical_multiple(lambda c: calls.append(c) or -c) == math.inf
    assert critical_multiple(lambda c: calls.append(c) or c) is None
    assert len(calls) < 40
