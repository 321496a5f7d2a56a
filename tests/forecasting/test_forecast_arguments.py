"""What a forecast accepts, refuses and leaves alone."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_forecast_training import problem
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import empirical_ntk
from torch_ntk.forecasting import forecast, forecast_from_kernel, outputs_of

LABELS = torch.tensor([0, 1, 1, 0, 1])


def call(**changed: Any) -> Any:
    net, x, y, _ = problem()
    arguments: dict[str, Any] = {"y": y, "lr": 0.1, "steps": 3, **changed}
    return forecast(net, arguments.pop("x", x), arguments.pop("y"), **arguments)


def name_of(value: Any) -> str:
    """For the name of a test: no address, so that parallel workers agree on it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:60]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"lr": 0.0}, ValueError, r"`lr` must be positive; got 0\."),
        ({"lr": -0.1}, ValueError, r"`lr` must be positive; got -0\.1"),
        ({"lr": math.nan}, ValueError, "`lr` must be a finite"),
        ({"lr": "fast"}, TypeError, "`lr`"),
        ({"momentum": 1.0}, ValueError, r"`momentum` must be in \[0, 1\)"),
        ({"momentum": -0.5}, ValueError, "`momentum`"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1; got 0"),
        ({"steps": -3}, ValueError, "`steps` must be at least 1"),
        ({"steps": []}, ValueError, "`steps` must be not empty"),
        ({"steps": [1, -2]}, ValueError, "`steps` must be not empty and not negative"),
        ({"steps": 2.5}, TypeError, "`steps` must be a number of steps"),
        ({"steps": True}, TypeError, "`steps`"),
        ({"steps": [0.5]}, TypeError, "`steps`"),
        ({"y": torch.zeros(4, 2).double()}, ValueError, r"`y` must be of the outputs' shape"),
        ({"y": torch.zeros(5, 3).double()}, ValueError, r"`y` must be of the outputs' shape"),
        ({"y": torch.zeros(5).double()}, ValueError, r"`y` must be of the outputs' shape"),
        ({"y": LABELS}, ValueError, r"one_hot\(y, 2, zero_centered=True\)"),
        ({"y": torch.full((5, 2), math.nan)}, ValueError, "`y` must be finite; got 10 NaN"),
        ({"y": [1.0] * 5}, TypeError, "`y` must be a torch.Tensor"),
        ({"loss": "mae"}, ValueError, "`loss` must be one of 'mse', 'cross_entropy'"),
        ({"loss": 3}, TypeError, "`loss` must be"),
        ({"loss": nn.MSELoss}, TypeError, "the class MSELoss"),
        ({"loss": nn.MSELoss(reduction="none")}, ValueError, r"`loss\.reduction`"),
        ({"reduction": "none"}, ValueError, "`reduction`"),
        ({"loss": lambda f, y: (f - y) ** 2}, ValueError, "`loss` must be .* scalar"),
        ({"loss": lambda f, y: 1.0}, TypeError, "`loss` must be .* scalar"),
        ({"output": "trace"}, ValueError, "`output`"),
        ({"x": torch.zeros(5, 4).double()}, ValueError, "`x"),
    ],
    ids=name_of,
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(**changed)


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (torch.tensor([0, 1, 2, 0, 1]), "labels from 0 to 1, as there are 2 outputs; got 2"),
        (torch.tensor([0, 1, -1, 0, 1]), "labels from 0 to 1, .*; got -1 among them"),
        (torch.tensor([0, 1]), "`y` must be one target for each of 5 samples"),
        (torch.full((5, 2), math.inf), "`y` must be finite"),
        (torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), r"`y` must be class labels \[5\] .*y.long\(\)"),
        (torch.full((5, 3), 0.5), r"or probabilities \[5, 2\]"),
        (torch.zeros(5, 1, dtype=torch.int64), r"`y` must be class labels \[5\]"),
    ],
    ids=["too-large", "negative", "too-few", "infinite", "floats", "columns", "axis"],
)
@pytest.mark.parametrize("loss", ["cross_entropy", F.cross_entropy, nn.CrossEntropyLoss()])
def test_bad_labels(loss: Any, y: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(y=y, loss=loss)


def test_ignored_labels_do_not_count() -> None:
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    found = call(y=torch.tensor([0, 1, -1, 0, 1]), loss=loss)
    assert bool((found.loss.diff() < 0).all())
    with pytest.raises(ValueError, match="only ignored labels"):
        call(y=torch.full((5,), -1), loss=loss)


def test_what_is_wrong_is_said_before_the_kernel_is_computed() -> None:
    def forward(*_: Any) -> None:
        raise AssertionError("the network was called")

    net, x, y, _ = problem()
    net.register_forward_pre_hook(forward)
    for changed in ({"lr": 0.0}, {"steps": 0}, {"momentum": 2.0}, {"loss": "mae"}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            forecast(net, x, y, **{"lr": 0.1, "steps": 3, **changed})  # type: ignore[arg-type]


def test_a_model_is_a_module() -> None:
    _, x, y, _ = problem()
    with pytest.raises(TypeError, match=r"must be an nn\.Module"):
        forecast(torch.sin, x, y, lr=0.1, steps=1)  # type: ignore[arg-type]


def test_a_kernel_and_its_outputs_fit() -> None:
    theta, f, y = torch.eye(3).double(), torch.zeros(3, 1).double(), torch.ones(3, 1).double()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"outputs": f[:2]}, r"`outputs` must be \[3, O\]"),
        ({"outputs": f[:, 0]}, r"`outputs` must be \[3, O\]"),
        ({"outputs": f / 0}, "`outputs` must be finite"),
        ({"k_test_train": theta}, "`test_outputs` must be given if"),
        ({"test_outputs": f}, "`k_test_train` must be given if"),
        ({"k_test_train": theta[:, :2], "test_outputs": f}, "`k_test_train`"),
        ({"k_test_train": theta, "test_outputs": f[:2]}, "`f0_test`"),
        ({"kernel": torch.zeros(3, 2).double()}, "k"),
        ({"kernel": theta * math.nan}, "finite"),
    ]
    for changed, text in cases:
        arguments = {"kernel": theta, "outputs": f, "y": y, **changed}
        with pytest.raises(ValueError, match=text):
            forecast_from_kernel(**arguments, lr=0.1, steps=2)


def test_one_kernel_for_every_output() -> None:
    """`output="mean"` is the full kernel whose blocks are multiples of the identity."""
    net, x, y, x_test = problem()
    found = forecast(net, x, y, lr=0.1, steps=9, x_test=x_test, output="mean")
    eye = torch.eye(2).double()
    full, cross = (
        empirical_ntk(net, a, b, output="mean", dtype=torch.float64)[:, :, None, None] * eye
        for a, b in ((x, None), (x_test, x))
    )
    by_hand = forecast_from_kernel(
        full,
        net(x),
        y,
        lr=0.1,
        steps=9,
        k_test_train=cross,
        test_outputs=net(x_test),
    )
    torch.testing.assert_close(found.loss, by_hand.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.test_outputs, by_hand.test_outputs, rtol=1e-9, atol=1e-10)


def test_targets_of_one_output_may_be_flat() -> None:
    net, x, y, _ = problem(1)
    flat, column = (forecast(net, x, t, lr=0.1, steps=4).loss for t in (y[:, 0], y))
    assert torch.equal(flat, column)


def test_many_steps_are_thinned_and_chosen_ones_kept() -> None:
    assert len(call(steps=5000).steps) == 1001
    assert call(steps=5000).steps[-1] == 5000
    chosen = call(steps=torch.tensor([7, 2, 2]))
    assert chosen.steps.tolist() == [2, 7]
    torch.testing.assert_close(chosen.loss, call(steps=7).loss[[2, 7]], rtol=1e-12, atol=0.0)


def test_a_network_without_a_gradient_never_learns() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    for p in net.parameters():
        nn.init.zeros_(p)
    _, x, y, _ = problem()
    found = forecast(net, x, y, lr=0.1, steps=5)
    assert found.stable
    assert math.isinf(found.max_lr)
    assert bool(found.mode_steps.isinf().all())
    assert bool((found.loss == found.loss[0]).all())
    assert "largest stable none" in str(found)


def test_inference_mode_and_traces() -> None:
    net, x, _, _ = problem()
    expected = forecast(net, x, LABELS, loss="cross_entropy", lr=0.1, steps=3)
    before = snapshot(net, x)
    with torch.inference_mode():
        found = forecast(net, x.clone(), LABELS.clone(), loss="cross_entropy", lr=0.1, steps=3)
    assert snapshot(net, x) == before
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.curvatures, expected.curvatures, rtol=1e-9, atol=1e-12)


def test_outputs_of_are_those_in_eval_mode() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    x = torch.randn(5, 3)
    found = outputs_of(net, x)
    assert net.training
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, net.double().eval()(x.double()).detach())
