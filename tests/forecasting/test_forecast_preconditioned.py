"""Forecasts under optimizers with a P of their own, against their real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_ntk.forecasting import forecast
from torch_ntk.forecasting.session import ForecastSession
from torch_ntk.monitor import Training

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
FROZEN = 1.0 - 1e-14  # of an average of squares that does not move
KINDS = [
    (torch.optim.Adam, {"betas": (0.9, FROZEN)}),
    (torch.optim.AdamW, {"betas": (0.5, FROZEN), "weight_decay": 0.0}),
    (torch.optim.RMSprop, {"alpha": FROZEN, "momentum": 0.7}),
]


def settled(kind: Any, options: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network that is linear in its parameters, and an optimizer with constant P, at rest."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}]
    optimizer = kind(groups, lr=0.05, **options)
    for p in model.parameters():
        v = torch.linspace(0.3, 2.0, p.numel(), dtype=p.dtype).reshape(p.shape)
        name = "square_avg" if kind is torch.optim.RMSprop else "exp_avg_sq"
        rest = "momentum_buffer" if kind is torch.optim.RMSprop else "exp_avg"
        optimizer.state[p].update({"step": torch.tensor(1e16), name: v, rest: torch.zeros_like(p)})
    return model, optimizer


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_constant_p_is_predicted_step_by_step(kind: Any, options: dict[str, Any]) -> None:
    model, optimizer = settled(kind, options)
    given: dict[str, Any] = {"metrics": ("param_drift",), "output": "full", "every_n_steps": 1}
    session = ForecastSession((X, Y), owner="F", **given)
    mu = options["betas"][0] if "betas" in options else options["momentum"]
    rate = 0.05 * (1.0 - mu) if "betas" in options else 0.05
    before = forecast(
        model, X, Y, loss=F.mse_loss, lr=rate, momentum=mu, steps=20, precondition=optimizer
    )
    training = Training(model, [optimizer])
    for step in range(21):
        with session.attempt(step, model):
            if step == 0:
                session.begin(model, None, step, training)
            session.measure(model, step, training, batches=step)
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    rows = session.record.history
    actual = [row["actual"] for row in rows]
    assert actual[-1] < 0.9 * actual[0]
    assert [row["predicted"] for row in rows] == pytest.approx(actual, rel=1e-9)
    assert before.loss.tolist() == pytest.approx(actual, rel=1e-9)
    scale = 1.0 - mu if "betas" in options else 1.0
    assert rows[0]["max_lr"] == pytest.approx(before.max_lr / scale, rel=1e-9)


def test_the_rate_at_which_a_forecast_diverges_is_that_of_the_optimizer() -> None:
    model, optimizer = settled(*KINDS[0])
    optimizer.param_groups[0]["lr"] = 500.0
    given: dict[str, Any] = {"metrics": ("param_drift",), "output": "full"}
    session = ForecastSession((X, Y), owner="F", **given)
    training = Training(model, [optimizer])
    with session.attempt(0, model):
        session.begin(model, None, 0, training)
        with pytest.warns(UserWarning, match="the learning rate 500 is not below"):
            session.measure(model, 0, training, batches=0)
