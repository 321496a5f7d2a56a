"""Running statistics of batch normalization, taken on the probe at every measurement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import ntk_loop, reduced
from torch import Tensor, nn

from torch_ntk.monitor import METRICS, Monitor

X = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 2


class Net(nn.Module):
    """Two normalizations, the second of which sees what the first makes of the samples."""

    def __init__(self, kind: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norms = nn.ModuleList([kind(4), kind(4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norms[0](self.first(x)))
        return self.head(torch.tanh(self.norms[1](self.second(h))).mean((2, 3)))


def written_out(net: Net, x: Tensor) -> list[Tensor]:
    """Means and variances layer by layer, without a running average."""
    found, h = [], x
    for conv, norm in zip((net.first, net.second), net.norms, strict=True):
        h = conv(h)
        mean, var = h.mean((0, 2, 3)), h.transpose(0, 1).flatten(1).var(1)
        found += [mean, var]
        h = (h - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + norm.eps).sqrt()
        h = torch.tanh(h * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    return found


def train(
    monitor: Monitor, net: nn.Module, lr: float = 0.05, steps: int = 5, x: Tensor = X
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        monitor.step(net, optimizer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.train()(x), Y).backward()
        optimizer.step()
    monitor.finish(net, optimizer)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_the_kernel_has_the_statistics_of_the_probe(kind: Any) -> None:
    x = X.double()
    net, monitor = Net(kind).double(), Monitor((x, Y), every_n_steps=2)
    train(monitor, net, x=x)
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    with torch.no_grad():
        mean_0, var_0, mean_1, var_1 = written_out(net, x)
        for norm, mean, var in zip(net.norms, (mean_0, mean_1), (var_0, var_1), strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
    theta = reduced(ntk_loop(net.eval(), x, x), "mean")
    top = float(torch.linalg.eigvalsh(theta)[-1])
    assert monitor.history["ntk/lambda_max"][-1] == pytest.approx(top, rel=1e-9)
    assert any(bool((buffers[n] != b).any()) for n, b in net.named_buffers())


def test_a_network_that_does_not_learn_has_not_moved() -> None:
    """Its running statistics have, a lot."""
    still, net = Monitor((X, Y), every_n_steps=1), Net()
    train(still, net, lr=0.0)
    assert float(net.norms[0].running_var[0]) != 1.0
    assert still.history["ntk/drift"] == [0.0] * 6
    assert still.verdict.regime == "unknown"
    running = Monitor((X, Y), every_n_steps=1, recalibrate=False)
    train(running, Net(), lr=0.0)
    assert running.history["ntk/drift"][-1] > 0.1
    assert running.verdict.regime == "undecided"


def test_training_and_buffers_stay_bitwise_as_they_are() -> None:
    states = []
    plain = Monitor((X, Y), at_steps=[0], metrics=("param_drift",), recalibrate=False)
    for monitor in (plain, Monitor((X, Y), every_n_steps=1)):
        net = Net()
        train(monitor, net)
        states.append(net.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_a_verdict_and_the_share_of_the_statistics() -> None:
    monitor, net = Monitor((X, Y), every_n_steps=5, metrics=METRICS), Net()
    train(monitor, net, lr=0.5, steps=40)
    assert monitor.verdict.regime in ("in between", "feature learning")
    share = monitor.history["ntk/statistics_share"]
    assert share[0] != share[0]  # nothing has moved at the reference
    assert all(0.0 < value < 10.0 for value in share[1:])
    assert "Statistics of normalization, which the linearized network keeps" in monitor.verdict.text

    # By hand: the outputs at the end with the statistics of the beginning.
    start = monitor.state_dict()["observer"]["anchor"]
    with torch.no_grad():
        f, kinds = [], ("running_mean", "running_var")
        first = [start["buffers"][f"norms.{k}.{kind}"] for k in (0, 1) for kind in kinds]
        for values in (written_out(net, X), first):
            for k, norm in enumerate(net.eval().norms):
                norm.running_mean.copy_(values[2 * k])
                norm.running_var.copy_(values[2 * k + 1])
            f.append(net(X).double())
    expected = (f[0] - f[1]).norm() / (f[0] - start["outputs"]).norm()
    assert share[-1] == pytest.approx(float(expected), rel=1e-3)


def test_a_forward_that_fails_is_refused_in_the_words_of_the_kernel() -> None:
    class Random(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(())

    monitor = Monitor((X, Y))
    net = Random()
    before = {n: b.clone() for n, b in net.named_buffers()}
    with pytest.raises(ValueError, match="`model` must be deterministic"):
        monitor.step(net)
    assert all(torch.equal(before[n], b) for n, b in net.named_buffers())
    with pytest.raises(TypeError, match="`recalibrate`"):
        Monitor((X, Y), recalibrate="yes")  # type: ignore[arg-type]
