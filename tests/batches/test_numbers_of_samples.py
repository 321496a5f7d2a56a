"""Forwards that read numbers out of their inputs: samples that decide alike are taken together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from batch_forms import built, by_name, full, loop, off
from torch import Tensor, nn

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk

METHODS = ("structured", "jacobian", "vector_product")


class Reading(nn.Module):
    """A sum over the tokens of a mask; a number read from the mask saves work."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        type(self).seen.append(len(x))
        h = torch.tanh(self.a(x)) * mask[..., None]
        return self.b(torch.tanh(h.sum(1)))

    seen: list[int]


class Unmasked(Reading):
    """As attention does where nothing is masked."""

    seen: list[int] = []  # noqa: RUF012

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.pooled(x, torch.ones_like(mask) if mask.all() else mask)


class Trimmed(Reading):
    """Without the padding that all samples of a batch have."""

    seen: list[int] = []  # noqa: RUF012

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        longest = int(mask.sum(1).max())
        return self.pooled(x[:, :longest], mask[:, :longest])


class Item(Reading):
    """By a number of Python that decides nothing."""

    seen: list[int] = []  # noqa: RUF012

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.sum().item() > 3.0:
            return self.pooled(x.clone(), mask)
        return self.pooled(x, mask)


MASKS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]])
KINDS = [Unmasked, Trimmed, Item]


def batch(n: int = 5, repeats: int = 1) -> dict[str, Tensor]:
    x = torch.randn(n * repeats, 4, 3, dtype=torch.float64)
    return {"x": x, "mask": MASKS[:n].repeat(repeats, 1)}


def jacobian(net: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    each = zip(given["x"].split(1), given["mask"].split(1), strict=True)
    return loop(net, [{"x": x, "mask": mask} for x, mask in each], by_name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels(kind: Callable[[], nn.Module], method: Any) -> None:
    net, a, b = built(kind), batch(), batch(3)
    found = empirical_ntk(net, a, b, method=method)
    assert off(found, full(jacobian(net, a)[1], jacobian(net, b)[1])) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_other_functions(kind: Callable[[], nn.Module]) -> None:
    net, a = built(kind), batch()
    f, j = jacobian(net, a)
    assert off(empirical_nngp(net, a), f @ f.T / 2) < 1e-10
    matrix = full(j, j).permute(0, 2, 1, 3).reshape(10, 10)
    assert off(NTKOperator(net, a) @ torch.eye(10).double(), matrix) < 1e-10


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_passes_as_decisions(kind: Any, method: Any) -> None:
    net = built(kind)
    counts = []
    for repeats in (1, 4):
        kind.seen.clear()
        empirical_ntk(net, batch(5, repeats), method=method, batch_size=20)
        counts.append(len(kind.seen))
    assert counts[0] == counts[1]


def test_a_decision_that_changes_the_function_is_refused() -> None:
    class Other(Reading):
        seen: list[int] = []  # noqa: RUF012

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.pooled(2 * x if mask.all() else x, mask)

    for method in METHODS:
        with pytest.raises(ValueError, match="one sample at a time"):
            empirical_ntk(built(Other), batch(), method=method)
