"""SGD on the converted network moves the function as SGD on the original did."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk.nn import MLP, NTKLinear, ntk_param_groups, ntk_parameterize


def fully_connected() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    return net, torch.randn(8, 3)


def convolutions() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    return net, torch.randn(8, 2, 5, 5)


def transposed() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, (1, 2), padding=(0, 1), bias=False),
        nn.Tanh(),
        nn.Conv2d(2, 2, 3),
        nn.Flatten(),
    )
    return net, torch.randn(8, 2, 3, 2)


class Recurrent(nn.Module):
    """The last hidden states of two layers in both directions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, 2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, last = self.rnn(x)
        return self.fc(outputs[:, -1]) + self.fc(last[:2].transpose(0, 1).flatten(1))


def recurrent() -> tuple[nn.Module, Tensor]:
    return Recurrent(), torch.randn(8, 4, 3)


def normalized() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.PReLU(4),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 2),
    )
    return net, torch.randn(8, 2, 5)


def tied() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[4].weight = net[2].weight
    net.append(nn.Tanh())
    net.append(net[4])
    net.append(nn.Tanh())
    return net, torch.randn(8, 3)


def frozen() -> tuple[nn.Module, Tensor]:
    net, x = fully_connected()
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net, x


MODELS = [fully_connected, convolutions, transposed, recurrent, normalized, tied, frozen]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.3},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
    "dampening": {"momentum": 0.8, "dampening": 0.4, "weight_decay": 0.2, "foreach": False},
}


def train(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> list[Tensor]:
    outputs = []
    for _ in range(10):
        optimizer.zero_grad()
        out = net(x)
        outputs.append(out.detach())
        (out - y).square().mean().backward()
        optimizer.step()
    outputs.append(net.eval()(x).detach())
    return outputs


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_ten_steps_of_sgd(
    make: Callable[[], tuple[nn.Module, Tensor]], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net, x = make()
    net, x = net.double(), x.double()
    y = torch.randn_like(net(x)).detach()
    start = copy.deepcopy(net)
    converted = ntk_parameterize(net, mode="preserve", sigma_b=0.3)
    want = train(net, torch.optim.SGD(net.parameters(), lr=0.05, **options), x, y)
    groups = ntk_param_groups(converted, 0.05, **options)
    got = train(converted, torch.optim.SGD(groups), x, y)
    assert (want[-1] - start.eval()(x)).abs().max() > 1e-2
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, s=step: f"{s}: {m}")


def test_a_schedule_keeps_the_ratio() -> None:
    torch.manual_seed(0)
    net, x = fully_connected()
    net, x = net.double(), x.double()
    converted = ntk_parameterize(net, mode="preserve")
    outputs = []
    for model, groups in (
        (net, net.parameters()),
        (converted, ntk_param_groups(converted, 0.1)),
    ):
        optimizer = torch.optim.SGD(groups, lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for _ in range(6):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            schedule.step()
        outputs.append(model(x))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


def test_rates_and_decays() -> None:
    net = nn.Sequential(NTKLinear(50, 4, sigma_w=2.0, sigma_b=0.5), nn.LayerNorm(4))
    groups = ntk_param_groups(net, 0.1, weight_decay=0.2, momentum=0.9)
    rates = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates[net[0].weight] == pytest.approx((0.1 * 50 / 4, 0.2 * 4 / 50))
    assert rates[net[0].bias] == pytest.approx((0.1 / 0.25, 0.2 * 0.25))
    assert rates[net[1].weight] == rates[net[1].bias] == (0.1, 0.2)
    assert all(group["momentum"] == 0.9 for group in groups)
    assert "weight_decay" not in ntk_param_groups(net, 0.1)[0]


def test_every_trainable_parameter_stands_in_one_group() -> None:
    net, _ = tied()
    net.append(nn.Embedding(3, 3))
    net[0].bias.requires_grad_(False)
    converted = ntk_parameterize(net, mode="preserve", sigma_w=1.0)
    listed = [p for group in ntk_param_groups(converted, 0.1) for p in group["params"]]
    wanted = [p for p in converted.parameters() if p.requires_grad]
    assert len(listed) == len(wanted)
    assert set(listed) == set(wanted)


def test_layers_of_one_shape_share_a_group() -> None:
    assert len(ntk_param_groups(MLP([8, 8, 8, 8], "identity"), 0.1)) == 2


def test_no_inputs() -> None:
    layer = NTKLinear(1, 3)
    layer.weight, layer.in_features = nn.Parameter(torch.ones(3, 0)), 0
    groups = ntk_param_groups(layer, 0.1)
    assert all(math.isfinite(group["lr"]) for group in groups)


def conflict() -> nn.Module:
    net = nn.Sequential(NTKLinear(3, 3), NTKLinear(3, 3, sigma_w=2.0))
    net[1].weight = net[0].weight
    return net


def embedded() -> nn.Module:
    net = nn.Sequential(nn.Embedding(3, 3), NTKLinear(3, 3))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("model", "lr", "options", "error", "words"),
    [
        (lambda: "net", 0.1, {}, TypeError, "`model` must be a torch.nn.Module"),
        (lambda: NTKLinear(3, 2), -0.1, {}, ValueError, "`lr` must be a finite number, at least 0"),
        (lambda: NTKLinear(3, 2), "0.1", {}, TypeError, "`lr`"),
        (lambda: NTKLinear(3, 2), 0.1, {"weight_decay": -1.0}, ValueError, "`weight_decay`"),
        (lambda: NTKLinear(3, 2), 0.1, {"betas": (0.9, 0.99)}, TypeError, "'betas'. These le"),
        (conflict, 0.1, {}, ValueError, r"'1' \(NTKLinear\) and the module '0' .* share"),
        (embedded, 0.1, {}, ValueError, r"'1' \(NTKLinear\) and the module '0' \(Embedding\)"),
        (lambda: NTKLinear(3, 2, sigma_b=0.0), 0.1, {}, ValueError, "sigma_b=0. Freeze it"),
        (lambda: NTKLinear(3, 2).requires_grad_(False), 0.1, {}, ValueError, "trainable"),
        (lambda: nn.ReLU(), 0.1, {}, ValueError, "trainable parameter"),
        (
            lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(NTKLinear(3, 2))),
            0.1,
            {},
            ValueError,
            "'0' .* weight or bias is computed",
        ),
    ],
)
def test_refusals(
    model: Any, lr: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ntk_param_groups(model(), lr, **options)
