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
from torch import Tensor, nn

from torch_ntk import analytic_kernels
from torch_ntk import nn as ntk
from torch_ntk.analytic.lift._modules import module_rule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lift.md"
DOUBLE: dict[str, Any] = {"dtype": torch.float64}
# A network, the shape of a sample, and what analytic_kernels is told besides.
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
    return nn.Sequential(flat, dense(features, 2)), shape, options


def on_vectors(module: nn.Module, **options: Any) -> Tried:
    return ended(nn.Sequential(dense(3, 6), module), 3, **options)


def on_images(module: nn.Module, axes: int = 2, **options: Any) -> Tried:
    first = {1: conv1d, 2: conv}.get(axes)
    layer = first(2, 4, 1) if first else ntk.NTKConv3d(2, 4, 1, **DOUBLE)
    return ended(nn.Sequential(layer, module), 2, *[4] * axes, **options)


def on_tokens(module: nn.Module | Callable[..., Tensor]) -> Tried:
    last = module if isinstance(module, nn.Module) else Function(module)
    return ended(nn.Sequential(dense(3, 4), last), 5, 3)


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

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dense(6, 6), dense(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


STANDARD: dict[str, Any] = {"standard": "torch"}
MATRIX = torch.rand(5, 5, **DOUBLE)
TRIED: dict[str, Callable[[], Tried]] = {
    "NTKLinear": lambda: on_tokens(ntk.NTKLinear(4, 4)),
    "NTKConvLocal2d": lambda: on_images(ntk.NTKConvLocal2d(4, 3, 2, input_size=4)),
    "NTKSelfAttention": lambda: on_tokens(ntk.NTKSelfAttention(4, 4)),
    "NTKRNN": lambda: on_tokens(Outputs(ntk.NTKRNN(4, 4, batch_first=True))),
    "MLP": lambda: ended(ntk.MLP([3, 4, 2]), 3),
    "nn.Linear": lambda: on_vectors(nn.Linear(6, 4), **STANDARD),
    "nn.GLU": lambda: on_vectors(nn.GLU()),
    "nn.Flatten": lambda: on_images(nn.Flatten()),
    "nn.Unflatten": lambda: on_images(nn.Unflatten(2, (2, 2)), 1),
    "nn.Unfold": lambda: on_images(nn.Unfold(2)),
    "nn.Fold": lambda: on_images(nn.Sequential(nn.Unfold(2), nn.Fold((4, 4), 2))),
    "nn.ChannelShuffle": lambda: on_images(nn.ChannelShuffle(2)),
    "nn.PixelUnshuffle": lambda: on_images(nn.PixelUnshuffle(2)),
    "nn.Upsample": lambda: on_images(nn.Upsample(scale_factor=2, mode="bicubic")),
    "nn.UpsamplingNearest2d": lambda: on_images(nn.UpsamplingNearest2d(6)),
    "nn.UpsamplingBilinear2d": lambda: on_images(nn.UpsamplingBilinear2d(6)),
    "nn.LayerNorm": lambda: on_vectors(nn.LayerNorm(6)),
    "nn.RMSNorm": lambda: on_vectors(nn.RMSNorm(6)),
    "nn.GroupNorm": lambda: on_images(nn.GroupNorm(2, 4)),
    "nn.Sequential": lambda: on_vectors(nn.Sequential(nn.ReLU())),
    "nn.PReLU": lambda: on_vectors(nn.PReLU().requires_grad_(False)),
    "nn.Threshold": lambda: on_vectors(nn.Threshold(0.3, 0.3)),
    "Monomial": lambda: on_vectors(ntk.Monomial(3)),
    "RectifiedMonomial": lambda: on_vectors(ntk.RectifiedMonomial(2)),
    "Polynomial": lambda: on_vectors(ntk.Polynomial([0.1, 1.0, 0.3])),
    "Hermite": lambda: on_vectors(ntk.Hermite(3)),
    "ABReLU": lambda: on_vectors(ntk.ABReLU(-0.3, 1.2)),
    "stax.Aggregate": lambda: on_tokens(lambda h: MATRIX @ h),
    "stax.DotGeneral": lambda: on_tokens(lambda h: torch.einsum("nsc,st->ntc", h, MATRIX)),
    "stax.Dropout": lambda: on_vectors(
        nn.Sequential(nn.ReLU(), nn.Dropout(0.3).train()), training=True
    ),
    "stax.AvgPool": lambda: on_images(nn.AvgPool2d(2)),
    "stax.SumPool": lambda: on_images(nn.AvgPool2d(2, divisor_override=1)),
    "stax.GlobalAvgPool": lambda: on_images(Function(lambda x: x.mean((2, 3)))),
    "stax.GlobalSumPool": lambda: on_images(Function(lambda x: x.sum((2, 3)))),
    "stax.ImageResize": lambda: on_images(Function(lambda x: F.interpolate(x, 7))),
    "stax.Index": lambda: on_images(Function(lambda x: x[:, :, ::2])),
    "stax.FanInSum": lambda: on_vectors(Plus(dense(6, 6))),
    "stax.FanInConcat": lambda: on_vectors(Beside(dense(6, 6), nn.ReLU())),
    "stax.FanInProd": lambda: on_vectors(Product()),
    "stax.Sigmoid_like": lambda: on_vectors(
        Function(lambda x: 0.5 * torch.erf(x / 2.4020563531719796) + 0.5)
    ),
    "stax.Elementwise": lambda: on_vectors(Function(lambda x: torch.tanh(x) * x)),
}
for _n in (1, 2, 3):
    for _kind in ("Conv", "ConvTranspose"):
        for _home, _options in ((ntk, {}), (nn, STANDARD)):
            _class = getattr(_home, f"{'NTK' if _home is ntk else ''}{_kind}{_n}d")
            TRIED[f"{'nn.' if _home is nn else ''}{_class.__name__}"] = (
                lambda c=_class, n=_n, o=_options: on_images(c(4, 3, 2), n, **o)
            )
    for _name, _arguments in (
        *(("AvgPool", (2,)), ("AdaptiveAvgPool", (2,)), ("ZeroPad", (1,)), ("ConstantPad", (1, 0))),
        *((f"{mode}Pad", (1,)) for mode in ("Circular", "Reflection", "Replication")),
        ("Dropout", ()),
    ):
        TRIED[f"nn.{_name}{_n}d"] = lambda c=f"{_name}{_n}d", a=_arguments, n=_n: on_images(
            getattr(nn, c)(*a), n
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


def tried(name: str) -> Tried:
    """A network with the layer; activations and the like need no arguments."""
    name = SAME.get(name, name)
    plain = name.removeprefix("nn.").removeprefix("stax.")
    for known in (name, plain):
        if known in TRIED:
            return TRIED[known]()
    return on_vectors(getattr(nn if name.startswith("nn.") else ntk, plain)())


LIFTS = [name for name, says in ROWS.items() if says == "yes"]


@pytest.mark.parametrize("name", LIFTS)
def test_what_lifts(name: str) -> None:
    net, shape, options = tried(name)
    x = torch.randn(2, *shape, **DOUBLE)
    for kernel in analytic_kernels(net.eval(), x, **options):
        assert kernel.shape == (2, 2)
        assert bool(kernel.isfinite().all())
        assert bool((kernel.diagonal() > 0).all())


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
