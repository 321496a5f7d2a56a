"""One network written in different ways has one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import Beside, Function, Plus, Times, conv, conv1d, dense, frozen
from torch import Tensor, nn

from torch_ntk import (
    RBF,
    ABReLU,
    Abs,
    Cos,
    Erf,
    Exp,
    Gabor,
    Gaussian,
    Hermite,
    Monomial,
    Polynomial,
    RectifiedMonomial,
    Sin,
    Sinusoid,
    analytic_kernels,
    analytic_ntk,
)


class Net(nn.Module):
    """Two convolutions and a dense layer with a forward of the test's."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.a = conv(3, 4, padding=1)
        self.b = conv(4, 4, padding=1)
        self.fc = dense(features, 2)
        self._written = forward
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self._written(self, x)


def modules(*between: nn.Module, end: nn.Module | None = None, features: int = 4) -> nn.Module:
    """conv, `between`, conv, `end`, dense."""
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if end is None else end
    return nn.Sequential(
        conv(3, 4, padding=1), *between, conv(4, 4, padding=1), last, dense(features, 2)
    )


def gap(x: Tensor) -> Tensor:
    return x.mean((2, 3))


FLAT = {"end": nn.Flatten(), "features": 80}
RELU = nn.ReLU()


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


# Forms of the function between the layers.
BETWEEN: dict[str, tuple[nn.Module, Callable[[Net, Tensor], Tensor]]] = {
    "F.relu": (RELU, lambda m, x: F.relu(x)),
    "F.relu(input=)": (RELU, lambda m, x: F.relu(input=x)),
    "F.relu(inplace)": (RELU, lambda m, x: F.relu(x, True)),
    "F.relu(inplace=)": (RELU, lambda m, x: F.relu(x, inplace=True)),
    "nn.ReLU(inplace)": (nn.ReLU(inplace=True), lambda m, x: F.relu(x)),
    "torch.relu": (RELU, lambda m, x: torch.relu(x)),
    "x.relu()": (RELU, lambda m, x: x.relu()),
    "x.relu_()": (RELU, lambda m, x: x.relu_()),
    "x.clamp": (RELU, lambda m, x: x.clamp(min=0)),
    "F.leaky_relu": (nn.LeakyReLU(0.3), lambda m, x: F.leaky_relu(x, 0.3)),
    "F.leaky_relu(inplace)": (nn.LeakyReLU(0.3), lambda m, x: F.leaky_relu(x, 0.3, True)),
    "F.leaky_relu(default)": (nn.LeakyReLU(), lambda m, x: F.leaky_relu(x)),
    "nn.PReLU": (nn.LeakyReLU(0.3), frozen(nn.PReLU(init=0.3, dtype=torch.float64))),
    "relu(relu)": (RELU, lambda m, x: F.relu(torch.relu(x))),
    "abs": (Abs(), lambda m, x: x.abs()),
    "abs()": (Abs(), lambda m, x: abs(x)),
    "torch.erf": (Erf(), lambda m, x: torch.erf(x)),
    "special.erf": (Erf(), lambda m, x: torch.special.erf(x)),
    "F.gelu": (nn.GELU(), lambda m, x: F.gelu(x)),
    "F.gelu(tanh)": (nn.GELU("tanh"), lambda m, x: F.gelu(x, approximate="tanh")),
    "torch.sin": (Sin(), lambda m, x: torch.sin(x)),
    "x.cos()": (Cos(), lambda m, x: x.cos()),
    "cos by sin": (Cos(), lambda m, x: torch.sin(x + torch.pi / 2)),
    "F.elu": (nn.ELU(0.7), lambda m, x: F.elu(x, 0.7)),
    "F.elu(inplace)": (nn.ELU(0.7), lambda m, x: F.elu(x, 0.7, True)),
    "F.hardtanh": (nn.Hardtanh(-0.5, 0.8), lambda m, x: x.clamp(-0.5, 0.8)),
    "F.silu": (nn.SiLU(), lambda m, x: F.silu(x)),
    "x*sigmoid(x)": (nn.SiLU(), lambda m, x: x * torch.sigmoid(x)),
    "sigmoid(x)*x": (nn.SiLU(), lambda m, x: torch.sigmoid(x) * x),
    "a function": (nn.SiLU(), lambda m, x: swish(x)),
    "F.softplus": (nn.Softplus(2.0), lambda m, x: F.softplus(x, beta=2.0)),
    "log(1+exp)": (nn.Softplus(), lambda m, x: torch.log(1 + torch.exp(x))),
    "tanh": (nn.Tanh(), lambda m, x: 2 * torch.sigmoid(2 * x) - 1),
    "x**2": (Function(torch.square), lambda m, x: x**2),
    "x*x": (Function(torch.square), lambda m, x: x * x),
    "x+relu": (nn.LeakyReLU(0.5), lambda m, x: 0.5 * (x + F.relu(x))),
    "factor": (nn.Sequential(Times(2.5), RELU), lambda m, x: F.relu(x * 2.5)),
    "factor after": (nn.Sequential(RELU, Times(2.5)), lambda m, x: 2.5 * F.relu(x)),
    "quotient": (nn.Sequential(RELU, Times(0.4)), lambda m, x: F.relu(x) / 2.5),
    "x+x": (nn.Sequential(Times(2.0), RELU), lambda m, x: torch.relu(x + x)),
    "buffer": (nn.Sequential(Times(0.5), RELU), lambda m, x: F.relu(m.scale * x)),
    "-x": (RELU, lambda m, x: F.relu(-x)),
    "0+x": (RELU, lambda m, x: F.relu(0 + x)),
    "dropout": (RELU, lambda m, x: F.dropout(F.relu(x), 0.5, m.training)),
    "nn.Dropout": (nn.Sequential(RELU, nn.Dropout(0.5)), lambda m, x: F.relu(x)),
    "nn.Identity": (nn.Sequential(nn.Identity(), RELU), lambda m, x: F.relu(x).contiguous()),
    "x+2x": (nn.Sequential(Times(3.0), RELU), lambda m, x: torch.relu(torch.add(x, x, alpha=2))),
    "where": (nn.ELU(0.7), lambda m, x: torch.where(x > 0, x, 0.7 * torch.expm1(x))),
    "x.where": (RELU, lambda m, x: x.where(x > 0, 0.0)),
    "maximum": (nn.LeakyReLU(0.2), lambda m, x: torch.maximum(x, 0.2 * x)),
    "truth values": (RELU, lambda m, x: (x > 0).double() * x),
    "two conditions": (nn.Hardtanh(0.0, 1.0), lambda m, x: x * ((x > 0) & (x < 1)) + (x >= 1) * 1),
    "relu(x)+relu(-x)": (Abs(), lambda m, x: F.relu(x) + F.relu(-x)),
    "relu(x)-0.5relu(-x)": (ABReLU(0.5, 1.0), lambda m, x: F.relu(x) - 0.5 * F.relu(-1 * x)),
    "gated by itself": (nn.SiLU(), lambda m, x: F.glu(torch.cat([x, x], 1), 1)),
    "relu(x)**2": (RectifiedMonomial(2), lambda m, x: F.relu(x) ** 2),
    "x**3": (Monomial(3), lambda m, x: torch.pow(x, 3)),
    "x*x*x": (Monomial(3), lambda m, x: x * x * x),
    "polynomial": (Polynomial([0.1, 1.0, 0.3]), lambda m, x: 0.1 + x * (1 + 0.3 * x)),
    "hermite": (Hermite(2), lambda m, x: (x.square() - 1) / 2**0.5),
    "scaled exp": (Exp(0.5, 0.3), lambda m, x: 0.5 * torch.exp(0.3 * x)),
    "gaussian": (Gaussian(0.5, -0.7), lambda m, x: 0.5 * torch.exp(-0.7 * x * x)),
    "gabor": (Gabor(), lambda m, x: torch.exp(-(x**2)) * torch.sin(x)),
    "sinusoid": (Sinusoid(2.0, 1.5, 0.2), lambda m, x: 2 * torch.sin(1.5 * x + 0.2)),
    "rbf": (RBF(0.5), lambda m, x: torch.sin(x) + torch.cos(x)),
    "F.layer_norm": (
        nn.Sequential(nn.LayerNorm((4, 4, 5), elementwise_affine=False), RELU),
        lambda m, x: F.layer_norm(x, x.shape[1:]).relu(),
    ),
    "addcmul": (Polynomial([0.0, 1.0, 0.5]), lambda m, x: torch.addcmul(x, x, x, value=0.5)),
    "F.avg_pool2d": (
        nn.Sequential(nn.AvgPool2d(2, 1, 1), RELU),
        lambda m, x: F.relu(F.avg_pool2d(x, 2, stride=1, padding=1)),
    ),
    "F.avg_pool2d(divisor_override)": (
        nn.Sequential(nn.AvgPool2d(2, divisor_override=3), RELU),
        lambda m, x: F.relu(F.avg_pool2d(x, 2, divisor_override=3)),
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_layers(name: str) -> None:
    module, form = BETWEEN[name]
    if isinstance(form, nn.Module):
        written: nn.Module = modules(form)
    else:
        written = Net(lambda m, x: m.fc(gap(m.b(form(m, m.a(x))))))
    _agree(written, modules(module))


# Forms of the whole forward, where the plain one is the first.
WHOLE: dict[str, tuple[nn.Module, nn.Module]] = {
    "flatten(1)": (
        Net(lambda m, x: m.fc(m.b(m.a(x).relu()).flatten(1)), 80),
        modules(RELU, **FLAT),
    ),
    "torch.flatten": (
        Net(lambda m, x: m.fc(torch.flatten(m.b(m.a(x).relu()), 1)), 80),
        modules(RELU, **FLAT),
    ),
    "view": (
        Net(lambda m, x: m.fc(m.b(m.a(x).relu()).view(x.size(0), -1)), 80),
        modules(RELU, **FLAT),
    ),
    "reshape": (
        Net(lambda m, x: m.fc(m.b(m.a(x).relu()).reshape(x.shape[0], 80)), 80),
        modules(RELU, **FLAT),
    ),
    "own size": (
        Net(lambda m, x: (lambda y: m.fc(y.view(y.size(0), -1)))(m.b(m.a(x).relu())), 80),
        modules(RELU, **FLAT),
    ),
    "relu after flatten": (
        Net(lambda m, x: m.fc(F.relu(m.b(m.a(x).relu()).flatten(1))), 80),
        modules(RELU, end=nn.Sequential(RELU, nn.Flatten()), features=80),
    ),
    "relu of two after flatten": (
        Net(lambda m, x: (lambda y: m.fc(y * torch.sigmoid(y)))(m.b(m.a(x).relu()).flatten(1)), 80),
        modules(RELU, end=nn.Sequential(nn.SiLU(), nn.Flatten()), features=80),
    ),
    "sum after flatten": (
        Net(lambda m, x: m.fc((m.b(m.a(x).relu()).flatten(1) + m.a2(x).flatten(1)).relu()), 80),
        nn.Sequential(
            Plus(nn.Sequential(conv(3, 4, padding=1), RELU, conv(4, 4, padding=1)), conv(3, 4, 1)),
            RELU,
            nn.Flatten(),
            dense(80, 2),
        ),
    ),
    "mean": (Net(lambda m, x: m.fc(m.b(m.a(x).relu()).mean(dim=[-1, -2]))), modules(RELU)),
    "torch.mean": (Net(lambda m, x: m.fc(torch.mean(m.b(m.a(x).relu()), (2, 3)))), modules(RELU)),
    "mean by sum": (Net(lambda m, x: m.fc(m.b(m.a(x).relu()).sum((2, 3)) / 20)), modules(RELU)),
    "mean of both axes": (
        Net(lambda m, x: m.fc(m.b(m.a(x).relu()).mean(3).mean(2))),
        modules(RELU),
    ),
    "keepdim": (
        Net(lambda m, x: m.fc(m.b(m.a(x).relu()).mean((2, 3), keepdim=True).flatten(1))),
        modules(RELU),
    ),
    "squeeze": (
        Net(lambda m, x: m.fc(m.b(m.a(x).relu()).mean((2, 3), True).squeeze(-1).squeeze(-1))),
        modules(RELU),
    ),
    "squeeze all": (
        Net(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.b(m.a(x).relu()), (1, 1)).squeeze())),
        modules(RELU),
    ),
    "layer_norm": (
        Net(lambda m, x: m.fc(gap(F.layer_norm(m.b(m.a(x).relu()), (4, 4, 5), eps=0.1)))),
        modules(RELU, end=nn.Sequential(
            nn.LayerNorm((4, 4, 5), 0.1, elementwise_affine=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )),
    ),
    "augmented": (
        Net(lambda m, x: m.fc(gap(_augmented(m, x)))),
        nn.Sequential(
            Plus(nn.Sequential(conv(3, 4, padding=1), RELU, conv(4, 4, padding=1)), conv(3, 4, 1)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(4, 2),
        ),
    ),
    "difference": (
        Net(lambda m, x: m.fc(gap(m.b(m.a(x).relu()) - m.a2(x)))),
        nn.Sequential(
            Plus(nn.Sequential(conv(3, 4, padding=1), RELU, conv(4, 4, padding=1)), conv(3, 4, 1)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(4, 2),
        ),
    ),
    "cat": (
        Net(lambda m, x: m.fc(gap(torch.cat((m.b(F.relu(m.a(x))), m.a2(x)), 1).relu())), 8),
        nn.Sequential(
            Beside(
                nn.Sequential(conv(3, 4, padding=1), RELU, conv(4, 4, padding=1), RELU),
                nn.Sequential(conv(3, 4, 1), RELU),
            ),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(8, 2),
        ),
    ),
    "the same twice": (
        Net(lambda m, x: m.fc(m.twice(torch.cat([F.relu(m.a(x))] * 2, 1)).flatten(1)), 80),
        modules(RELU, **FLAT),
    ),
    "preprocessed": (
        Net(lambda m, x: m.fc(gap(m.b(m.a((2 * x - x.mean((2, 3), keepdim=True)) / 2).relu())))),
        nn.Sequential(
            Function(lambda x: x - x.mean((2, 3), keepdim=True) / 2), *modules(RELU)
        ),
    ),
}  # fmt: skip


def _augmented(m: Net, x: Tensor) -> Tensor:
    y = m.b(m.a(x).relu())
    y += m.a2(x)
    return y


for _net, _ in WHOLE.values():
    _net.a2 = conv(3, 4, 1)
    _net.twice = conv(8, 4, padding=1)


@pytest.mark.parametrize("name", WHOLE)
def test_how_the_forward_is_written(name: str) -> None:
    _agree(*WHOLE[name])


def _agree(written: nn.Module, plain: nn.Module) -> None:
    x1, x2 = (torch.randn(n, 3, 4, 5, dtype=torch.float64) for n in (3, 2))
    before = x1.clone()
    for other in (None, x2):
        got, wanted = analytic_kernels(written, x1, other), analytic_kernels(plain, x1, other)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert torch.equal(x1, before)


def test_a_layer_alone() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    got = analytic_kernels(dense(4, 2, 1.5, 0.5), x)
    wanted = 2.25 * x @ x.T / 4 + 0.25
    torch.testing.assert_close(got.ntk, wanted)
    torch.testing.assert_close(got.nngp, wanted)


def test_one_axis_functions() -> None:
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    a, b, c = conv1d(2, 4), conv1d(4, 4), dense(4, 1)

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = a, b, c

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(F.avg_pool1d(F.relu(self.a(x)), 2, 1))
            return self.c(F.adaptive_avg_pool1d(y, 1).squeeze(2))

    plain = nn.Sequential(a, nn.ReLU(), nn.AvgPool1d(2, 1), b, nn.AdaptiveAvgPool1d(1))
    plain.extend([nn.Flatten(), c])
    for got, wanted in zip(analytic_kernels(Written(), x), analytic_kernels(plain, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "last",
    [
        *(lambda t: t.squeeze(-1), lambda t: torch.squeeze(t, dim=1), lambda t: t[:, 0]),
        *(lambda t: t.flatten(), lambda t: t.view(-1), lambda t: t.select(1, 0)),
    ],
)
def test_the_only_output_without_its_axis(last: Any) -> None:
    net = nn.Sequential(dense(4, 3), nn.ReLU(), dense(3, 1))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(analytic_ntk(nn.Sequential(net, Function(last)), x), analytic_ntk(net, x))
    again = nn.Sequential(net, Function(last), Function(lambda t: 2 * t))  # along which axis?
    with pytest.raises(ValueError, match=r"squeeze|axis|reshaping"):
        analytic_ntk(again, x)
