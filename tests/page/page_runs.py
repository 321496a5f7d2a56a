"""A short training, watched without Lightning."""

from __future__ import annotations

import torch
from torch import nn

from torch_ntk.monitor import METRICS, Monitor


def watched(lr: float = 0.2, steps: int = 3, **options: object) -> Monitor:
    """Twelve samples of three classes, measured at every step."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    options = {"metrics": (*METRICS, "module_drift"), **options}
    monitor = Monitor((x, y), every_n_steps=1, **options)  # type: ignore[arg-type]
    for _ in range(steps):
        monitor.step(network, optimizer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    monitor.finish(network, optimizer)
    return monitor
