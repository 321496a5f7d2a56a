"""What a measurement takes of the memory, and its limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_ntk.monitor import Monitor

STATUS = Path("/proc/self/status")
CHILD = """
import torch
from torch import nn
from torch_ntk.monitor import Monitor

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024

torch.set_num_threads(1)
net = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 32),
)
x, y = torch.randn(64, 3, 32, 32), torch.arange(64) % 32
nn.functional.cross_entropy(net(x), y).backward()
monitor = Monitor((x, y), metrics=("drift",), every_n_steps=1)
Monitor((x[:2], y[:2]), metrics=("drift",)).step(net)  # what is loaded at first
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is that from here on
before = status("VmRSS")
monitor.step(net)
print(sum(p.numel() for p in net.parameters()), status("VmHWM") - before)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak where Linux keeps it")
def test_drift_of_a_small_network_takes_two_hundred_megabytes() -> None:
    """A network of 91,000 parameters on 64 images; with all outputs at once it took 600 MB."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    parameters, taken = map(int, done.stdout.split())
    assert 90_000 < parameters < 95_000
    assert taken < 200e6


def test_max_memory_is_that_of_the_kernel() -> None:
    net = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 8))
    x = torch.randn(8, 64)
    with pytest.raises(ValueError, match="max_memory"):
        Monitor((x,), metrics=("drift",), max_memory="20KB").step(net)
    monitor = Monitor((x,), metrics=("drift",), max_memory="200MB")
    assert monitor.step(net) is not None
    for wrong in ("much", 0, -1, 1.5):
        with pytest.raises((TypeError, ValueError), match="max_memory"):
            Monitor((x,), max_memory=wrong)  # type: ignore[arg-type]
