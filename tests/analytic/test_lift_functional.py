"""Functions of `torch.nn.functional` are read, or refused, as the modules of the same meaning."""

# ruff: noqa: E501  # tables are easier to read with one row a line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import conv, dense, frozen
from torch import Tensor, nn

from torch_ntk import analytic_kernels, analytic_ntk

Form = Callable[[Any, Tensor], Tensor]

VECTORS, IMAGES = (4,), (2, 5, 4)


class Between(nn.Module):
    """Two layers of which the first has 8 features, with a module or a function between them."""

    def __init__(self, between: nn.Module | Form, shape: tuple[int, ...]) -> None:
        super().__init__()
        make = dense if shape == VECTORS else conv
        ends = () if shape == VECTORS else (1,)
        self.first, self.last = make(shape[0], 8, *ends), make(8, 2, *ends)
        self.between = between if isinstance(between, nn.Module) else None
        self._written = between
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.slope = nn.Parameter(torch.tensor([0.3], dtype=torch.float64), requires_grad=False)
        self.trained = nn.Parameter(torch.tensor([0.3]))
        self.register_buffer("zeros", torch.zeros(8))
        self.register_buffer("ones", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self._written(self, y) if self.between is None else self.between(y)
        return self.last(y)


# name: (shape of a sample, module, function)
READ: dict[str, tuple[tuple[int, ...], nn.Module, Form]] = {
    "rms_norm": (VECTORS, nn.RMSNorm(8, elementwise_affine=False), lambda m, x: F.rms_norm(x, (8,))),
    "rms_norm, gain": (VECTORS, nn.RMSNorm(8, eps=0.1), lambda m, x: F.rms_norm(x, (8,), weight=m.weight, eps=0.1)),
    "layer_norm": (VECTORS, nn.LayerNorm(8, elementwise_affine=False), lambda m, x: F.layer_norm(x, (8,))),
    "layer_norm, gain": (VECTORS, nn.LayerNorm(8), lambda m, x: F.layer_norm(x, (8,), m.weight, m.bias)),
    "group_norm": (IMAGES, nn.GroupNorm(2, 8, affine=False), lambda m, x: F.group_norm(x, 2)),
    "group_norm, gain": (IMAGES, nn.GroupNorm(2, 8, 0.1), lambda m, x: F.group_norm(x, 2, m.weight, m.bias, 0.1)),
    "group_norm, buffers": (IMAGES, nn.GroupNorm(1, 8, affine=False), lambda m, x: F.group_norm(x, 1, m.ones, m.zeros)),
    "prelu": (VECTORS, frozen(nn.PReLU(init=0.3, dtype=torch.float64)), lambda m, x: F.prelu(x, m.slope)),
    "x.prelu": (VECTORS, frozen(nn.PReLU(init=1.0)), lambda m, x: x.prelu(m.ones[:1])),
    "prelu(tanh)": (VECTORS, nn.Sequential(nn.Tanh(), frozen(nn.PReLU())), lambda m, x: F.leaky_relu(torch.tanh(x), 0.25)),
    "adaptive_avg_pool2d": (IMAGES, nn.AdaptiveAvgPool2d((None, 2)), lambda m, x: F.adaptive_avg_pool2d(x, (None, 2))),
    "avg_pool2d": (IMAGES, nn.AvgPool2d(2, 1, 1, True, False), lambda m, x: F.avg_pool2d(x, 2, 1, 1, True, False)),
    "gelu": (VECTORS, nn.GELU(), lambda m, x: F.gelu(x)),
    "gelu, tanh": (VECTORS, nn.GELU("tanh"), lambda m, x: F.gelu(x, approximate="tanh")),
    "leaky_relu": (VECTORS, nn.LeakyReLU(0.2), lambda m, x: F.leaky_relu(x, 0.2)),
    "leaky_relu_": (VECTORS, nn.LeakyReLU(0.2), lambda m, x: F.leaky_relu_(x, 0.2)),
    "relu_": (VECTORS, nn.ReLU(), lambda m, x: F.relu_(x)),
    "rrelu": (VECTORS, nn.RReLU(0.2, 0.4), lambda m, x: F.rrelu(x, 0.2, 0.4, m.training)),
    "elu": (VECTORS, nn.ELU(0.7), lambda m, x: F.elu(x, 0.7)),
    "elu_": (VECTORS, nn.ELU(0.7), lambda m, x: F.elu_(x, 0.7)),
    "selu": (VECTORS, nn.SELU(), lambda m, x: F.selu(x)),
    "celu": (VECTORS, nn.CELU(0.6), lambda m, x: F.celu(x, 0.6)),
    "softplus": (VECTORS, nn.Softplus(2.0, 10.0), lambda m, x: F.softplus(x, 2.0, 10.0)),
    "mish": (VECTORS, nn.Mish(), lambda m, x: F.mish(x)),
    "hardtanh": (VECTORS, nn.Hardtanh(-0.5, 0.7), lambda m, x: F.hardtanh(x, -0.5, 0.7)),
    "relu6": (VECTORS, nn.ReLU6(), lambda m, x: F.relu6(x)),
    "silu": (VECTORS, nn.SiLU(), lambda m, x: F.silu(x)),
    "softsign": (VECTORS, nn.Softsign(), lambda m, x: F.softsign(x)),
    "tanhshrink": (VECTORS, nn.Tanhshrink(), lambda m, x: F.tanhshrink(x)),
    "softshrink": (VECTORS, nn.Softshrink(0.3), lambda m, x: F.softshrink(x, 0.3)),
    "hardswish": (VECTORS, nn.Hardswish(), lambda m, x: F.hardswish(x)),
    "hardsigmoid": (VECTORS, nn.Hardsigmoid(), lambda m, x: F.hardsigmoid(x)),
    "logsigmoid": (VECTORS, nn.LogSigmoid(), lambda m, x: F.logsigmoid(x)),
    "threshold": (VECTORS, nn.Threshold(0.1, 0.1), lambda m, x: F.threshold(x, 0.1, 0.1)),
    "dropout": (VECTORS, nn.Dropout(0.5), lambda m, x: F.dropout(x, 0.5, m.training)),
    "torch.dropout": (VECTORS, nn.Dropout(0.5), lambda m, x: torch.dropout(x, 0.5, m.training)),
    "dropout2d": (IMAGES, nn.Dropout2d(0.5), lambda m, x: F.dropout2d(x, 0.5, m.training)),
    "alpha_dropout": (VECTORS, nn.AlphaDropout(0.5), lambda m, x: F.alpha_dropout(x, 0.5, m.training)),
    "feature_alpha_dropout": (IMAGES, nn.FeatureAlphaDropout(0.5), lambda m, x: F.feature_alpha_dropout(x, 0.5, m.training)),
}  # fmt: skip

# name: (shape of a sample, module, function, why)
REFUSED: dict[str, tuple[tuple[int, ...], nn.Module, Form, str]] = {
    "batch_norm": (IMAGES, nn.BatchNorm2d(8), lambda m, x: F.batch_norm(x, m.zeros, m.ones, m.weight, m.bias), "couples the samples"),
    "instance_norm": (IMAGES, nn.InstanceNorm2d(8), lambda m, x: F.instance_norm(x), "a single channel"),
    "group_norm of channels": (IMAGES, nn.GroupNorm(8, 8), lambda m, x: F.group_norm(x, 8, m.weight, m.bias), "one channel per group"),
    "group_norm of unequal groups": (IMAGES, nn.GroupNorm(3, 9), lambda m, x: F.group_norm(x, 3), "8 channels in 3 groups"),
    "local_response_norm": (IMAGES, nn.LocalResponseNorm(2), lambda m, x: F.local_response_norm(x, 2), "a few neighbouring channels"),
    "max_pool2d": (IMAGES, nn.MaxPool2d(2), lambda m, x: F.max_pool2d(x, 2), "Use average pooling"),
    "lp_pool2d": (IMAGES, nn.LPPool2d(2, 2), lambda m, x: F.lp_pool2d(x, 2, 2), "Use average pooling"),
    "softmax": (VECTORS, nn.Softmax(1), lambda m, x: F.softmax(x, 1), "no closed limit"),
    "prelu": (VECTORS, nn.PReLU(), lambda m, x: F.prelu(x, m.trained), "PReLU whose slope is trained"),
    "prelu(tanh)": (VECTORS, nn.Sequential(nn.Tanh(), nn.PReLU(dtype=torch.float64)), lambda m, x: F.prelu(torch.tanh(x), m.trained), "PReLU whose slope is trained"),
    "prelu of 8": (VECTORS, frozen(nn.PReLU(8)), lambda m, x: F.prelu(x, m.zeros), "PReLU of 8 slopes"),
    "a gain that is not 1": (VECTORS, frozen(nn.RMSNorm(8)), lambda m, x: F.rms_norm(x, (8,), m.zeros), "weight is not 1 everywhere"),
}  # fmt: skip
nn.init.zeros_(REFUSED["a gain that is not 1"][1].weight)


def samples(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", READ)
def test_a_function_has_the_kernels_of_its_module(name: str) -> None:
    shape, module, function = READ[name]
    x = samples(shape)
    got, wanted = (analytic_kernels(Between(f, shape), x) for f in (function, module))
    assert torch.equal(got.nngp, wanted.nngp)
    assert torch.equal(got.ntk, wanted.ntk)


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_is_refused_as_its_module(name: str) -> None:
    shape, module, function, why = REFUSED[name]
    for form in (module, function):
        with pytest.raises(ValueError, match=rf"`model` must be.*{why}"):
            analytic_kernels(Between(form, shape), samples(shape))


def test_a_gain_that_is_used_elsewhere_too_is_refused() -> None:
    twice = Between(lambda m, x: F.rms_norm(x, (8,), m.weight) * m.weight, VECTORS)
    with pytest.raises(ValueError, match="parameter 'weight' used directly"):
        analytic_ntk(twice, samples(VECTORS))
    norms = Between(lambda m, x: F.rms_norm(F.rms_norm(x, (8,), m.weight), (8,), m.weight), VECTORS)
    with pytest.raises(ValueError, match="second use of the parameters"):
        analytic_ntk(norms, samples(VECTORS))


def test_a_trained_gain_of_the_inputs_is_part_of_the_kernel() -> None:
    class First(nn.Module):
        def __init__(self, norm: nn.Module | None) -> None:
            super().__init__()
            self.norm, self.weight = norm, nn.Parameter(torch.ones(4))
            self.layer = dense(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.norm(x) if self.norm else F.rms_norm(x, (4,), self.weight))

    x = samples(VECTORS)
    assert torch.equal(analytic_ntk(First(None), x), analytic_ntk(First(nn.RMSNorm(4)), x))
    without = analytic_ntk(First(nn.RMSNorm(4, elementwise_affine=False)), x)
    assert not torch.allclose(analytic_ntk(First(None), x), without)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: F.dropout(x, 0.5),
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: F.dropout1d(x[:, :, None], 0.5)[:, :, 0],
        lambda x: F.alpha_dropout(x, 0.5, training=True),
    ],
    ids=["dropout", "torch.dropout", "dropout1d", "alpha_dropout"],
)
def test_dropout_of_the_inputs_in_eval_mode(form: Callable[[Tensor], Tensor]) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = dense(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(form(x))

    with pytest.raises(ValueError, match=r"active in eval mode too.*training=self\.training"):
        analytic_ntk(First(), samples(VECTORS))


def test_dropout_of_positions_is_refused() -> None:
    """`F.dropout1d` drops what is on axis 1, which are positions here."""
    net = nn.Sequential(dense(4, 8), _Dropout1d(), dense(8, 2))
    with pytest.raises(ValueError, match="channels on axis 2"):
        analytic_ntk(net, torch.randn(2, 3, 4), training=True)


class _Dropout1d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout1d(x, 0.5, self.training)
