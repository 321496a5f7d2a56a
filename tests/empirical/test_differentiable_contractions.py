"""Gradients of kernels by every order of contraction, whole and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import by_name
from oracles import contract_full, jacobian_with_graph, reduced
from plans import OUTPUTS
from small_pieces import in_pieces
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ntk import empirical_ntk
from torch_ntk.empirical.structured import _plan


def gradients(kernel: Tensor, by: list[Tensor]) -> list[Tensor]:
    """Of `Σ sin(k) Θ_k` over all entries k."""
    weights = torch.arange(kernel.numel(), dtype=kernel.dtype).sin().view(kernel.shape)
    found = torch.autograd.grad(kernel, by, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(by, found, strict=True)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    size = max(float(e.abs().max()) for e in expected)
    assert size > 0
    assert all(
        float((f - e).abs().max()) < 1e-10 * size for f, e in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("contraction", ["gram", "features", "jacobian"])
@pytest.mark.parametrize("name", ["ntk_conv", "conv_groups_dilation", "layer_three_times"])
def test_every_order_of_contraction(
    name: str, contraction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plan, "cheapest", lambda found: found.get(contraction, found["gram"]))
    case = by_name(name)
    own, model = case.build(), case.build()
    x, y = (case.inputs(3).requires_grad_() for _ in range(2))
    j = jacobian_with_graph(own, y)
    for k, output in enumerate(OUTPUTS):
        if k % 2:
            in_pieces(monkeypatch, chunk=512)
        kernel = empirical_ntk(model, x, output=output, differentiable=True)  # type: ignore[call-overload]
        expected = reduced(contract_full(j, j), output)
        wanted = gradients(expected, [y, *own.parameters()])
        assert_close(gradients(kernel, [x, *model.parameters()]), wanted)


class Tied(nn.Module):
    """An embedding whose table is that of the logits too; large, so that it is not formed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(400, 6))
        self.mix = nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.mix(F.embedding(ids, self.table, 0))).cumsum(1)
        return F.linear(h, self.table)


@pytest.mark.parametrize("output", ["full", "diagonal", "mean"])
def test_a_table_that_is_looked_up_and_applied(output: Any) -> None:
    model = Tied().double()
    a, b = (torch.randint(0, 9, (n, 3)) for n in (4, 2))
    found = []
    for method in ("structured", "jacobian"):
        for second in (None, b):
            kernel = empirical_ntk(
                model,
                a,
                second,
                output=output,
                method=method,  # type: ignore[arg-type]
                forward_fn=lambda net, ids: net(ids)[:, -1, ::100],
                differentiable=True,
            )
            found.append(gradients(kernel, list(model.parameters())))
    assert_close(found[0], found[2])
    assert_close(found[1], found[3])


@pytest.mark.parametrize("output", OUTPUTS)
def test_cotangents_that_are_the_identity_by_chance(output: Any) -> None:
    """A gain of one behind the last layer: the kernel depends on it all the same."""

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.gain = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x))) * self.gain

    model, x = Gain().double(), torch.randn(3, 3, dtype=torch.float64)
    names = ["first.weight", "last.weight", "last.bias"]
    kernel = empirical_ntk(model, x, params=names, output=output, differentiable=True)
    j = jacobian_with_graph(model, x, names)
    by = [model.gain, *model.first.parameters(), *model.last.parameters()]
    wanted = gradients(reduced(contract_full(j, j), output), by)
    assert float(wanted[0].abs().min()) > 0.01
    assert_close(gradients(kernel, by), wanted)
