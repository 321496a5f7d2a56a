"""The tables of docs/lift.md are true: complete, and every layer that lifts is tried."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import Beside, Function, Plus, conv, conv1d, dense
from test_finite_networks import deviation
from torch import Tensor, nn

from torch_ntk import analytic_kernels
from torch_ntk import nn as ntk
from torch_ntk.analytic.lift._modules import module_rule
from torch_ntk.sampling import MonteCarloKernel
from torch_ntk.sampling._moments import RunningMoments

WIDTH, OUTPUTS = 64, 16
PAGE = Path(__file__).resolve().parents[2] / "docs" / "lift.md"
DOUBLE: dict[str, Any] = {"dtype": torch.float64}
# A network of some width, the shape of a sample, and what analytic_kernels is told besides.
Tried = tuple[nn.Module, tuple[int, ...], dict[str, Any]]


def rows() -> dict[str, str]:
    """What the tables say of each layer."""
    found: dict[str, str] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 5 or not cells[1].startswith("`"):
            continue
        for name in re.findall(r"`([^`]+)`", cells[1]):
            assert name not in found, f"{name} has two rows"
            found[name] = cells[2]
    return found


ROWS = rows()


def ended(body: nn.Module, *shape: int, **options: Any) -> Tried:
    """With a dense layer on whatever comes out."""
    flat = nn.Sequential(body.double(), nn.Flatten())
    features = flat(torch.zeros(2, *shape, **DOUBLE)).shape[1]
    return nn.Sequential(flat, dense(features, OUTPUTS, 1.0)), shape, options


def on_vectors(module: nn.Module, n: int, **options: Any) -> Tried:
    return ended(nn.Sequential(dense(3, n, 1.0), module), 3, **options)


def on_images(module: nn.Module, n: int, axes: int = 2, **options: Any) -> Tried:
    first = {1: conv1d, 2: conv}.get(axes)
    layer = first(2, n, 1) if first else ntk.NTKConv3d(2, n, 1, **DOUBLE)
    return ended(nn.Sequential(layer, module), 2, *[4] * axes, **options)


def on_tokens(module: nn.Module | Callable[..., Tensor], n: int) -> Tried:
    last = module if isinstance(module, nn.Module) else Function(module)
    return ended(nn.Sequential(dense(3, n), last), 5, 3)


class Outputs(nn.Module):
    """The first of what a recurrent layer returns."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return outputs


class Product(nn.Module):
    """A product of two branches."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = dense(n, n), dense(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


STANDARD: dict[str, Any] = {"standard": "torch"}
MATRIX = torch.rand(5, 5, **DOUBLE)
TRIED: dict[str, Callable[[int], Tried]] = {
    "NTKLinear": lambda n: on_tokens(ntk.NTKLinear(n, n), n),
    "NTKConvLocal2d": lambda n: on_images(ntk.NTKConvLocal2d(n, n, 2, input_size=4), n),
    "NTKSelfAttention": lambda n: on_tokens(ntk.NTKSelfAttention(n, n), n),
    "NTKRNN": lambda n: on_tokens(Outputs(ntk.NTKRNN(n, n, batch_first=True)), n),
    "MLP": lambda n: ended(ntk.MLP([3, n, n]), 3),
    "nn.Linear": lambda n: on_vectors(nn.Linear(n, n), n, **STANDARD),
    "nn.GLU": lambda n: on_vectors(nn.GLU(), n),
    "nn.Flatten": lambda n: on_images(nn.Flatten(), n),
    "nn.Unflatten": lambda n: on_vectors(
        nn.Sequential(dense(n, 4 * n), nn.Unflatten(1, (n, 2, 2)), nn.ReLU(), conv(n, n, 2)), n
    ),
    "nn.Unfold": lambda n: on_images(nn.Unfold(2), n),
    "nn.Fold": lambda n: on_images(nn.Sequential(nn.Unfold(2), nn.Fold((4, 4), 2)), n),
    "nn.ChannelShuffle": lambda n: on_images(nn.ChannelShuffle(2), n),
    "nn.PixelShuffle": lambda n: on_images(
        nn.Sequential(conv(n, 4 * n, 1), nn.ReLU(), nn.PixelShuffle(2), conv(n, n, 3)), n
    ),
    "nn.PixelUnshuffle": lambda n: on_images(nn.PixelUnshuffle(2), n),
    "nn.Upsample": lambda n: on_images(nn.Upsample(scale_factor=2, mode="bicubic"), n),
    "nn.UpsamplingNearest2d": lambda n: on_images(nn.UpsamplingNearest2d(6), n),
    "nn.UpsamplingBilinear2d": lambda n: on_images(nn.UpsamplingBilinear2d(6), n),
    "nn.LayerNorm": lambda n: on_vectors(nn.LayerNorm(n), n),
    "nn.RMSNorm": lambda n: on_vectors(nn.RMSNorm(n), n),
    "nn.GroupNorm": lambda n: on_images(nn.GroupNorm(2, n), n),
    "nn.Sequential": lambda n: on_vectors(nn.Sequential(nn.ReLU()), n),
    "nn.PReLU": lambda n: on_vectors(nn.PReLU().requires_grad_(False), n),
    "nn.Threshold": lambda n: on_vectors(nn.Threshold(0.3, 0.3), n),
    "Monomial": lambda n: on_vectors(ntk.Monomial(3), n),
    "RectifiedMonomial": lambda n: on_vectors(ntk.RectifiedMonomial(2), n),
    "Polynomial": lambda n: on_vectors(ntk.Polynomial([0.1, 1.0, 0.3]), n),
    "Hermite": lambda n: on_vectors(ntk.Hermite(3), n),
    "ABReLU": lambda n: on_vectors(ntk.ABReLU(-0.3, 1.2), n),
    "stax.Aggregate": lambda n: on_tokens(lambda h: MATRIX @ h, n),
    "stax.DotGeneral": lambda n: on_tokens(lambda h: torch.einsum("nsc,st->ntc", h, MATRIX), n),
    "stax.Dropout": lambda n: on_vectors(
        nn.Sequential(nn.ReLU(), nn.Dropout(0.3)), n, training=True
    ),
    "stax.AvgPool": lambda n: on_images(nn.AvgPool2d(2), n),
    "stax.SumPool": lambda n: on_images(nn.AvgPool2d(2, divisor_override=1), n),
    "stax.GlobalAvgPool": lambda n: on_images(Function(lambda x: x.mean((2, 3))), n),
    "stax.GlobalSumPool": lambda n: on_images(Function(lambda x: x.sum((2, 3))), n),
    "stax.ImageResize": lambda n: on_images(Function(lambda x: F.interpolate(x, 7)), n),
    "stax.Index": lambda n: on_images(Function(lambda x: x[:, :, ::2]), n),
    "stax.FanInSum": lambda n: on_vectors(Plus(dense(n, n)), n),
    "stax.FanInConcat": lambda n: on_vectors(Beside(dense(n, n), nn.ReLU()), n),
    "stax.FanInProd": lambda n: on_vectors(Product(n), n),
    "stax.Sigmoid_like": lambda n: on_vectors(
        Function(lambda x: 0.5 * torch.erf(x / 2.4020563531719796) + 0.5), n
    ),
    "stax.Elementwise": lambda n: on_vectors(Function(lambda x: torch.tanh(x) * x), n),
}
for _axes in (1, 2, 3):
    for _kind in ("Conv", "ConvTranspose"):
        for _home, _options in ((ntk, {}), (nn, STANDARD)):
            _class = getattr(_home, f"{'NTK' if _home is ntk else ''}{_kind}{_axes}d")
            TRIED[f"{'nn.' if _home is nn else ''}{_class.__name__}"] = (
                lambda n, c=_class, a=_axes, o=_options: on_images(c(n, n, 2), n, a, **o)
            )
    for _name, _arguments in (
        *(("AvgPool", (2,)), ("AdaptiveAvgPool", (2,)), ("ZeroPad", (1,)), ("ConstantPad", (1, 0))),
        *((f"{mode}Pad", (1,)) for mode in ("Circular", "Reflection", "Replication")),
    ):
        TRIED[f"nn.{_name}{_axes}d"] = lambda n, c=f"{_name}{_axes}d", a=_axes, v=_arguments: (
            on_images(getattr(nn, c)(*v), n, a)
        )
    TRIED[f"nn.Dropout{_axes}d"] = lambda n, c=f"Dropout{_axes}d", a=_axes: on_images(
        nn.Sequential(nn.ReLU(), getattr(nn, c)(0.3)), n, a, training=True
    )
# Under another name what is tried above.
SAME = {
    "stax.Dense": "NTKLinear",
    "stax.Conv": "NTKConv2d",
    "stax.ConvTranspose": "NTKConvTranspose2d",
    "stax.ConvLocal": "NTKConvLocal2d",
    "stax.GlobalSelfAttention": "NTKSelfAttention",
    "stax.Flatten": "nn.Flatten",
    "stax.Identity": "nn.Identity",
    "stax.LayerNorm": "nn.LayerNorm",
    "stax.FanOut": "stax.FanInSum",
    "stax.serial": "nn.Sequential",
    "stax.parallel": "stax.FanInSum",
    "stax.repeat": "nn.Sequential",
    "stax.ElementwiseNumerical": "stax.Elementwise",
    "stax.ABRelu": "ABReLU",
    "stax.Relu": "nn.ReLU",
    "stax.LeakyRelu": "nn.LeakyReLU",
    "stax.Gelu": "nn.GELU",
    "stax.Rbf": "RBF",
}


def known(name: str) -> str:
    """What a layer is tried as, which may be that of another library."""
    plain = SAME.get(name, name).removeprefix("stax.")
    return plain if plain in ROWS else f"stax.{plain}"


def tried(name: str, n: int = 4) -> Tried:
    """A network with the layer; activations and the like need no arguments."""
    if name in TRIED:
        return TRIED[name](n)
    plain = name.removeprefix("nn.")
    return on_vectors(getattr(nn if name.startswith("nn.") else ntk, plain)(), n)


LIFTS = sorted({known(name) for name, says in ROWS.items() if says == "yes"})
each_layer = pytest.mark.parametrize("name", LIFTS)


@each_layer
def test_what_lifts(name: str) -> None:
    """By fused loops as by tensor operations, with the derivatives that differences have."""
    net, shape, options = tried(name)
    x, y = torch.randn(2, *shape, **DOUBLE), torch.randn(1, *shape, **DOUBLE)
    net.train("training" in options)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack(analytic_kernels(net, x, y, **options))

    for kernel in analytic_kernels(net, x, **options):
        assert kernel.shape == (2, 2)
        assert bool((kernel.diagonal() > 0).all())
    in_loops = both(x, y)
    x.requires_grad_()
    torch.testing.assert_close(in_loops, both(x, y).detach(), rtol=1e-11, atol=1e-13)
    assert torch.autograd.gradcheck(both, (x, y), fast_mode=True)


@each_layer
def test_finite_networks_have_it_on_average(name: str) -> None:
    """By outputs and derivatives of PyTorch alone, to within what 30 % more would be told by."""
    net, shape, options = tried(name, WIDTH)
    net.train("training" in options)
    x = torch.randn(2, *shape, **DOUBLE)
    random = [m for m in net.modules() if hasattr(m, "reset_parameters")]
    limits = analytic_kernels(net, x, **options)
    moments = RunningMoments(), RunningMoments()

    def away(factor: float) -> list[float]:
        """How far both kernels are from the limit times a factor, in standard errors."""
        return [
            deviation(MonteCarloKernel(m.mean, m.standard_error, m.count), factor * k, WIDTH)
            for m, k in zip(moments, limits, strict=True)
        ]

    for draw in range(400):
        for module in random:
            module.reset_parameters()
        for moment, kernel in zip(moments, kernels_of(net, x), strict=True):
            moment.add(kernel)
        if draw % 20 == 19 and min(away(1.3)) > 3:
            break
    assert max(away(1.0)) < 3
    assert min(away(1.3)) > 3


def kernels_of(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the outputs of their products, and the tangent kernel of the first one."""
    f = net(x)
    weights = [p for p in net.parameters() if p.requires_grad]
    slopes = [torch.autograd.grad(y, weights, retain_graph=True) for y in f[:, 0]]
    jacobian = torch.stack([torch.cat([s.flatten() for s in sample]) for sample in slopes])
    f = f.detach()
    return f @ f.T / f.shape[1], jacobian @ jacobian.T


def test_every_class_of_torch_is_in_the_table() -> None:
    classes = {
        f"nn.{name}"
        for name, kind in vars(nn).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
    assert sorted(classes - set(ROWS)) == []


def test_every_layer_of_this_package_is_in_the_table() -> None:
    classes = {n for n in ntk.__all__ if inspect.isclass(getattr(ntk, n))}
    assert sorted(classes - set(ROWS)) == []


def test_nothing_else_has_a_rule() -> None:
    assert set(ROWS.values()) <= {"yes", "no", "after a batch", "—"}
    for name, says in ROWS.items():
        kind = getattr(nn, name.removeprefix("nn."), None) if name.startswith("nn.") else None
        if kind is not None and says in ("no", "—") and module_rule(kind) is not None:
            net, shape, options = tried(name)
            with pytest.raises(ValueError, match="`model` must be"):
                analytic_kernels(net, torch.randn(2, *shape, **DOUBLE), **options)


def test_rms_norm_is_the_layer_norm_of_features_without_a_mean() -> None:
    x = torch.randn(3, 4, 3, **DOUBLE)
    nets = [
        nn.Sequential(dense(3, 6), norm, nn.ReLU(), nn.Flatten(), dense(24, 2))
        for norm in (nn.RMSNorm(6, 0.1, **DOUBLE), nn.LayerNorm(6, 0.1, bias=False, **DOUBLE))
    ]
    for one, other in zip(*(analytic_kernels(net, x) for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
