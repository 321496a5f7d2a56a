"""Forecasts under optimizers with a P of their own, against their real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_ntk.forecasting import forecast
from torch_ntk.forecasting.session import ForecastSession
from torch_ntk.forecasting.session._momentum_course import MomentumCourse, Motion
from torch_ntk.monitor.stability import Training

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
FROZEN = 1.0 - 1e-14  # of an average of squares that does not move
KINDS = [
    (torch.optim.Adam, {"betas": (0.9, FROZEN)}),
    (torch.optim.AdamW, {"betas": (0.5, FROZEN), "weight_decay": 0.0}),
    (torch.optim.RMSprop, {"alpha": FROZEN, "momentum": 0.7}),
]


def settled(
    kind: Any, options: dict[str, Any], at_rest: bool = True
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network that is linear in its parameters, and an optimizer with constant P."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}]
    optimizer = kind(groups, lr=0.05, **options)
    for p in model.parameters():
        v = torch.linspace(0.3, 2.0, p.numel(), dtype=p.dtype).reshape(p.shape)
        name = "square_avg" if kind is torch.optim.RMSprop else "exp_avg_sq"
        rest = "momentum_buffer" if kind is torch.optim.RMSprop else "exp_avg"
        m = torch.zeros_like(p) if at_rest else 0.3 * torch.randn_like(p)
        optimizer.state[p].update({"step": torch.tensor(1e16), name: v, rest: m.detach()})
    return model, optimizer


LABELS = torch.arange(6) % 2


@pytest.mark.parametrize("at_rest", [True, False])
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("loss", [F.mse_loss, F.cross_entropy])
def test_a_constant_p_is_predicted_step_by_step(
    kind: Any, options: dict[str, Any], at_rest: bool, loss: Any
) -> None:
    """Also from momentum that was there before."""
    model, optimizer = settled(kind, options, at_rest)
    y = Y if loss is F.mse_loss else LABELS
    given: dict[str, Any] = {"metrics": ("param_drift",), "output": "full", "every_n_steps": 1}
    session = ForecastSession((X, y), owner="F", **given)
    mu = options["betas"][0] if "betas" in options else options["momentum"]
    gain = 1.0 - mu if "betas" in options else 1.0
    before = forecast(
        model, X, y, loss=loss, lr=0.05 * gain, momentum=mu, steps=20, precondition=optimizer
    )
    training = Training(model, [optimizer])
    for step in range(21):
        with session.attempt(step, model):
            if step == 0:
                session.begin(model, None, step, training)
            session.measure(model, step, training, batches=step)
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()
    rows = session.record.history
    actual = [row["actual"] for row in rows]
    assert actual[-1] != pytest.approx(actual[0], rel=0.05)
    assert [row["predicted"] for row in rows] == pytest.approx(actual, rel=1e-9)
    assert rows[0]["max_lr"] == pytest.approx(before.max_lr / gain, rel=1e-9)
    if loss is F.mse_loss and at_rest:
        assert before.loss.tolist() == pytest.approx(actual, rel=1e-9)


def test_the_correction_of_an_average_counts() -> None:
    """Adam's own formulas with a constant P, from its fifth step on, in the parameters."""
    features = torch.cat([X, torch.ones(6, 1).double()], 1)
    generator = torch.Generator().manual_seed(4)
    w, m = (torch.randn(5, 2, generator=generator).double() for _ in "wm")
    p = torch.rand(5, 2, generator=generator).double() + 0.5
    theta = torch.einsum("np,pi,mp,ij->nmij", features, p, features, torch.eye(2).double())
    motion = Motion(features @ (p * m), 0.1, 5.0)
    course = MomentumCourse(theta, features @ w, LABELS, F.cross_entropy, 0.2, 0.9, motion)
    for step in range(12):
        if step:
            g = features.T @ ((features @ w).softmax(1) - F.one_hot(LABELS)) / 6
            m = 0.9 * m + 0.1 * g
            w = w - 0.2 * p * m / (1.0 - 0.9 ** (5 + step))
        loss = float(F.cross_entropy(features @ w, LABELS))
        assert course.loss_at(step) == pytest.approx(loss, rel=1e-10)


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
