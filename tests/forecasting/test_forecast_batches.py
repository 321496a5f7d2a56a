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
