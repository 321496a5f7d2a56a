"""Factors of convolutions: Jacobians of them, and Gram matrices of patches."""

from __future__ import annotations

import pytest
import torch
from oracles import contract_full, jacobian_loop, reduced, relative_error
from small_pieces import in_pieces
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk.empirical.structured import _kernel, _plan


class OfTwoImages(nn.Module):
    """A convolution of both halves of every sample, which are two images of one call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, stride=(1, 2), padding=(2, 1), dilation=(2, 1))
        self.then = nn.Sequential(nn.Tanh(), nn.Conv2d(5, 6, (1, 2)), nn.Tanh(), nn.Flatten())
        self.last = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 4, 6, 5]` to `[N, 3]`."""
        images = x.reshape(-1, 2, 6, 5)
        return self.last(self.then(self.first(images)).reshape(len(x), -1))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("output", ["full", "mean", "diagonal"])
@pytest.mark.parametrize("varies", [False, True])
def test_jacobians_of_convolutions(
    varies: bool, output: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_plan, _kernel):
        monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(_plan, "cheapest", lambda found: found["jacobian"])
    monkeypatch.setattr(_plan.Plan, "is_late", lambda self, name: late and name != "last.weight")
    in_pieces(monkeypatch, columns=3000)  # of a few channels, in pieces of samples
    monkeypatch.setattr(_kernel.StructuredMethod, "_samples_of_piece", lambda self: 3)
    torch.manual_seed(0)
    model, x = OfTwoImages().double(), torch.randn(7, 4, 6, 5, dtype=torch.float64)
    p = {n: torch.rand_like(v) + 0.5 for n, v in model.named_parameters()} if varies else None
    kernel = empirical_ntk(model, x, output=output, precondition=p, method="structured")
    j = jacobian_loop(model, x)
    if p is not None:
        j = j * torch.cat([v.flatten() for v in p.values()]).sqrt()
    assert relative_error(kernel, reduced(contract_full(j, j), output)) < 1e-12


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("contraction", "output"), [("gram", "mean"), ("gram", "diagonal"), ("features", "full")]
)
def test_gram_matrices_of_patches(
    contraction: str, output: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plan, "cheapest", lambda found: found[contraction])
    monkeypatch.setattr(_plan.Plan, "is_late", lambda self, name: late and name != "last.weight")
    in_pieces(monkeypatch, chunk=30000, rows=16)
    monkeypatch.setattr(_kernel.StructuredMethod, "_samples_of_piece", lambda self: 3)
    torch.manual_seed(0)
    model, x = OfTwoImages().double(), torch.randn(7, 4, 6, 5, dtype=torch.float64)
    kernel = empirical_ntk(model, x, output=output, method="structured")
    j = jacobian_loop(model, x)
    assert relative_error(kernel, reduced(contract_full(j, j), output)) < 1e-12
    other = empirical_ntk(model, x[:4], x[4:], output=output, method="structured")
    assert relative_error(other, kernel[:4, 4:]) < 1e-12
