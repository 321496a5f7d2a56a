"""Forecasts from batches of any form, against real training of networks linear in their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk.forecasting import forecast, outputs_of


class Masked(nn.Module):
    """Linear in its parameters: its kernel stays as it is, and a forecast is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> dict[str, Tensor]:
        f = self.a(torch.where(mask, x, 0.0)) * scale[:, None]
        return {"logits": f, "doubled": 2 * f}


def samples(n: int) -> dict[str, Tensor]:
    scale = torch.rand(n, dtype=torch.float64) + 0.5
    return {"x": torch.randn(n, 3).double(), "mask": torch.rand(n, 3) < 0.7, "scale": scale}


@pytest.mark.parametrize("entry", ["logits", "doubled"])
@pytest.mark.parametrize("form", [dict, lambda batch: tuple(batch.values())])
def test_training_goes_as_forecast(form: Any, entry: str) -> None:
    net, train, test = Masked().double(), samples(5), samples(4)
    y = torch.randn(5, 2, dtype=torch.float64)

    def f(model: nn.Module, batch: Any) -> Tensor:
        out = model(**batch) if isinstance(batch, dict) else model(*batch)
        return out[entry]

    forward_fn = None if entry == "logits" else f
    found = forecast(net, form(train), y, lr=0.2, steps=6, x_test=form(test), forward_fn=forward_fn)
    assert torch.equal(
        outputs_of(net, form(test), forward_fn=forward_fn), net(**test)[entry].detach()
    )
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.2), []
    for _ in range(7):
        loss = 0.5 * (net(**train)[entry] - y).square().mean()
        losses.append(loss.item())
        out = net(**test)[entry].detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(found.loss, torch.tensor(losses, dtype=found.loss.dtype), rtol=1e-10)
    assert torch.allclose(found.test_outputs[-1], out, rtol=1e-10)


def test_test_samples_are_like_those_of_training() -> None:
    net, train, test = Masked().double(), samples(5), samples(4)
    with pytest.raises(ValueError, match=r"`x2`.*like x1"):
        forecast(net, train, torch.ones(5, 2), lr=0.1, steps=2, x_test=tuple(test.values()))


@pytest.mark.parametrize("mode", ["graph", "batch norm"])
def test_rows_of_one_input(mode: str) -> None:
    """Node classification as it is trained: a graph, of which some nodes have targets."""
    torch.manual_seed(0)
    first: nn.Module = nn.Linear(3, 2) if mode == "graph" else nn.BatchNorm1d(3)
    net = nn.Sequential(first, nn.Linear(3, 2)) if mode == "batch norm" else first
    net = net.double()
    x, mix = torch.randn(6, 3).double(), torch.rand(6, 6).double()
    mask = torch.tensor([True, True, False, True, True, False])
    if mode == "batch norm":  # linear in what is trained
        net[0].requires_grad_(False)

    def nodes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        out: Tensor = batch[1] @ model(batch[0]) if mode == "graph" else model(batch[0])
        return out

    def labelled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nodes(model, batch)[mask]

    y = torch.randn(4, 2, dtype=torch.float64)
    options: dict[str, Any] = {"coupled": True, "training": True, "forward_fn": labelled}
    found = forecast(net, (x, mix), y, lr=0.05, steps=4, **options)
    assert torch.allclose(
        outputs_of(net, (x, mix), coupled=True, training=True, forward_fn=nodes),
        nodes(net, (x, mix)).detach(),
    )
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, lr=0.05), []
    for _ in range(5):
        loss = 0.5 * (labelled(net, (x, mix)) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(found.loss, torch.tensor(losses, dtype=found.loss.dtype), rtol=1e-10)
