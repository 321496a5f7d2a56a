"""A few eigenvalues of a small kernel cost no more than the kernel itself."""

from __future__ import annotations

import pytest
import torch
from oracle import built, error, full, inputs, jacobian
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torch_ntk import NTKOperator, empirical_ntk


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@pytest.mark.parametrize("which", ["LA", "SA"])
def test_operations(which: str) -> None:
    """Counted, not timed: products of the operator against those of the whole kernel."""
    net, x = built(_network), inputs(12, 3, 16, 16)
    with FlopCounterMode(display=False) as whole:
        kernel = empirical_ntk(net, x)
    with FlopCounterMode(display=False) as few:
        pairs = NTKOperator(net, x).eigsh(3, which)  # type: ignore[arg-type]
    expected = torch.linalg.eigvalsh(kernel.permute(0, 2, 1, 3).reshape(48, 48))
    values = torch.sort(pairs.values).values
    chosen = expected[-3:] if which == "LA" else expected[:3]
    assert error(values, chosen) < 1e-8
    assert few.get_total_flops() <= 3 * whole.get_total_flops()


def test_values_from_the_loop() -> None:
    net, x = built(_network), inputs(3, 3, 8, 8)
    dense = full(jacobian(built(_network), x)).permute(0, 2, 1, 3).reshape(12, 12)
    pairs = NTKOperator(net, x).eigsh(2)
    assert error(torch.sort(pairs.values).values, torch.linalg.eigvalsh(dense)[-2:]) < 1e-10
