"""An embedding whose weight is that of the last linear layer too, as in language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ntk import empirical_ntk, explain

ROWS, WIDTH, LENGTH = 400, 6, 3


class Tied(nn.Module):
    """Tokens and a segment are looked up in one table, by which logits are taken."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        h = F.embedding(ids, self.table, self.padding)
        h = torch.tanh(self.mix(h)) + F.embedding(ids[:, :1] % 5, self.table, self.padding)
        return F.linear(h.cumsum(1), self.table)


def of_some(net: nn.Module, ids: Tensor) -> Tensor:
    """Eight logits, so that there is a full kernel."""
    return net(ids)[:, -1, ::50]


def tokens(n: int, seed: int) -> Tensor:
    ids = torch.randint(0, 9, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    return torch.where(ids < 7, ids, ids * 40)


def net(padding: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    return Tied(padding).double()


def jacobian(model: nn.Module, ids: Tensor) -> Tensor:
    params = list(model.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, params, retain_graph=True)])
        for one in ids.split(1)
        for f in of_some(model, one).flatten()
    ]
    return torch.stack(rows).view(len(ids), 8, -1)


@pytest.mark.parametrize("output", ["full", "diagonal", "mean"])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("how", [{}, {"batch_size": 2}, {"max_memory": "40MB"}])
def test_kernel(output: Any, padding: int | None, how: dict[str, Any]) -> None:
    model, a, b = net(padding), tokens(5, 1), tokens(3, 2)
    j1, j2 = jacobian(model, a), jacobian(model, b)
    for x2, other in ((None, j1), (b, j2)):
        expected = torch.einsum("nip,mjp->nmij", j1, other)
        if output != "full":
            expected = expected.diagonal(dim1=2, dim2=3)
        if output == "mean":
            expected = expected.mean(-1)
        found = empirical_ntk(
            model, a, x2, output=output, method="structured", forward_fn=of_some, **how
        )
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12


def test_it_is_contracted_without_its_jacobian() -> None:
    for output in ("full", "diagonal", "mean"):
        lines = explain(net(), tokens(5, 1), output=output, forward_fn=of_some).lines  # type: ignore[arg-type]
        (table,) = (line for line in lines if line.parameter == "table")
        assert (table.uses, table.contraction) == (3, "tied")
        assert table.bytes_per_sample < 8 * ROWS * WIDTH * 8  # its Jacobian


def test_directions_of_all_logits() -> None:
    model, a = net(), tokens(4, 1)
    found = empirical_ntk(model, a, output="probed")
    other = empirical_ntk(model, a, output="probed", method="jacobian")
    assert torch.allclose(found.kernel, other.kernel, rtol=1e-12)
    single = empirical_ntk(model.float(), a, output="probed", accumulate=torch.float64)
    assert torch.allclose(single.kernel, other.kernel, rtol=1e-5)
