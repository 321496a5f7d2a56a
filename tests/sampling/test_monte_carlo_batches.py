"""Averages over random networks of batches that are no tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk.sampling import monte_carlo_kernel


class Gated(nn.Module):
    """Linear in its one weight w: both kernels are known for every draw."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, x: Tensor, gate: Tensor) -> dict[str, Tensor]:
        f = (x @ self.w * gate)[:, None]
        return {"logits": f, "doubled": 2 * f}


def batch(n: int) -> dict[str, Tensor]:
    return {"x": torch.randn(n, 3).double(), "gate": torch.rand(n).double()}


@pytest.mark.parametrize("factor", [1, 2])
def test_means_of_dictionaries(factor: int) -> None:
    def doubled(net: nn.Module, given: Any) -> Tensor:
        return net(**given)["doubled"]

    a, b, drawn = batch(4), batch(3), []

    def make() -> nn.Module:
        drawn.append(Gated())
        return drawn[-1]

    features = [t["x"] * t["gate"][:, None] * factor for t in (a, b)]
    options: dict[str, Any] = {"forward_fn": None if factor == 1 else doubled, "n_samples": 3}
    ntk = monte_carlo_kernel(make, a, b, **options)
    assert torch.allclose(ntk.mean, features[0] @ features[1].T, rtol=1e-12)
    assert ntk.standard_error.abs().max() < 1e-12
    drawn.clear()
    nngp = monte_carlo_kernel(make, a, b, kind="nngp", **options)
    outer = torch.stack([net.w.detach().outer(net.w.detach()) for net in drawn]).mean(0)
    assert torch.allclose(nngp.mean, features[0] @ outer @ features[1].T, rtol=1e-12)
