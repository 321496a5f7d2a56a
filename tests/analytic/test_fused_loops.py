"""Fused loops give the numbers of tensor operations, on every network, in either precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from analytic_cases import ACTIVATIONS, NETS, Net
from covariance_oracle import kernels
from small_nets import Plus, conv, dense
from torch import Tensor, nn

from torch_ntk import CNTK, analytic_explain, analytic_kernels, mlp_kernels
from torch_ntk.activations import (
    DualAffine,
    DualExp,
    DualGaussian,
    DualGELU,
    DualPolynomial,
    DualQuadrature,
    DualRectifiedPower,
    DualSin,
    DualSinusoid,
    DualSquare,
)
from torch_ntk.analytic._api import evaluation_mode
from torch_ntk.analytic.engine import fused
from torch_ntk.analytic.engine._plan import plan
from torch_ntk.analytic.lift import read


def plain(kernel: Callable[..., tuple[Tensor, ...]], a: Tensor, b: Tensor | None) -> list[Tensor]:
    """By tensor operations: there are no fused loops where derivatives are wanted."""
    return [k.detach() for k in kernel(a.clone().requires_grad_(), b)]


# Loops of another precision are compiled anew, from the same statements but for polynomials: every
# formula, and a network of each kind of passes.
SINGLE = ACTIVATIONS + tuple(
    net
    for net in NETS
    if net.name in ("residual", "dense_net", "group_norm_affine", "conv_gap", "conv_stride")
)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_every_network(net: Net) -> None:
    _compare(net, torch.float64)


MIXED = [net for net in NETS if "pool" in net.name or net.name == "layers_after_gap"]


@pytest.mark.parametrize("net", MIXED, ids=lambda net: net.name)
def test_variances_by_loops(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """After averages over some positions; elsewhere images are too small for this."""
    monkeypatch.setattr("torch_ntk.analytic.engine._within._POSITIONS", 1)
    _compare(net, torch.float64)


@pytest.mark.parametrize("net", SINGLE, ids=lambda net: net.name)
def test_networks_in_single_precision(net: Net) -> None:
    _compare(net, torch.float32)


def _compare(net: Net, dtype: torch.dtype) -> None:
    model, x1, x2 = net.build(4), net.inputs(3), net.inputs(2, 1)
    x1[1] = x1[0] + 1e-3 * x1[2]  # nearly equal inputs
    x2[0] = x1[2]
    tolerance = 1e-12 if dtype == torch.float64 else 3e-4

    def kernel(a: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return analytic_kernels(model, a, b, dtype=dtype)

    for other in (None, x2):
        wanted = plain(lambda a, b: analytic_kernels(model, a, b), x1, other)
        for mine, right in zip(kernel(x1, other), wanted, strict=True):
            assert mine.dtype == dtype
            if other is None:
                assert torch.equal(mine, mine.T)
            error = (mine.double() - right).abs()
            # Where derivatives are wanted, copies are not known as such, and positions with the
            # same content have an angle that is known to 1e-8.
            equal = (
                torch.eye(3).bool() if other is None else (x1[:, None] == other).flatten(2).all(2)
            )
            error[equal] *= 1e-4
            assert float(error.max()) <= tolerance * float(right.abs().max())


@pytest.mark.parametrize("padding", ["zeros", "circular", "valid"])
@pytest.mark.parametrize("shape", [(5, 9), (12, 7), (1, 6), (6, 1)])
def test_images_of_every_size(shape: tuple[int, int], padding: str) -> None:
    if padding == "valid" and min(shape) < 5:
        return
    x1, x2 = torch.randn(2, 1, 2, *shape, dtype=torch.float64)
    # Filters of one row or column are code of their own: that of an odd one will do.
    even = [{"kernel_size": 2, "sigma_b": 0.2}] if min(shape) > 1 else []
    for options in (*even, {"kernel_size": 3}):
        for pooling in ("gap", "flatten"):
            kernel = CNTK(3, pooling=pooling, padding=padding, **options)
            for other in (x2, None, x1.clone()):
                (wanted,) = plain(lambda a, b: (kernel(a, b),), x1, other)  # noqa: B023
                torch.testing.assert_close(kernel(x1, other), wanted, rtol=1e-7, atol=0)
                if other is x2:
                    torch.testing.assert_close(kernel(x1, other), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", [20, 28])
def test_images_of_usual_sizes(side: int) -> None:
    """Many rows and displacements, in lines longer than the steps that loops take."""
    x1, x2 = torch.randn(2, 1, 2, side, side, dtype=torch.float64)
    for kernel in (CNTK(3, pooling="gap", sigma_b=0.2), CNTK(3, padding="circular")):
        (wanted,) = plain(lambda a, b: (kernel(a, b),), x1, x2)  # noqa: B023
        torch.testing.assert_close(kernel(x1, x2), wanted, rtol=1e-12, atol=0)


def deep_mlp(channels: int) -> nn.Module:
    return nn.Sequential(
        dense(channels, 4, 1.3, 0.4), nn.ReLU(), dense(4, 4, 1.1, 0.3), nn.LeakyReLU(0.2),
        dense(4, 2, 1.0, 0.2),
    )  # fmt: skip


def flattened_cnn(channels: int) -> nn.Module:
    body = Plus(nn.Sequential(nn.ReLU(), conv(4, 4, padding=1, sigma_b=0.5)))
    return nn.Sequential(
        conv(channels, 4, padding=1, sigma_b=0.4), body, nn.ReLU(), conv(4, 4, 2, sigma_b=0.3),
        nn.ReLU(), nn.Flatten(), dense(80, 2, 1.2, 0.6),
    )  # fmt: skip


WITH_CHANNELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": (deep_mlp, ()),
    "cnn": (flattened_cnn, (5, 6)),
}


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("name", WITH_CHANNELS)
def test_few_and_many_channels(name: str, channels: int) -> None:
    """Few channels by differences, many by products; near pairs and copies among them."""
    make, spatial = WITH_CHANNELS[name]
    net = make(channels)
    x1, x2 = (torch.randn(n, channels, *spatial, dtype=torch.float64) for n in (4, 3))
    x1[1] = x1[0] + 1e-7 * x2[0]
    x2[1] = x1[2]
    for other in (None, x2):
        got = analytic_kernels(net, x1, other)
        for mine, wanted in zip(got, kernels(net, x1, other), strict=True):
            # The oracle's angle between near inputs is good to 1e-8.
            torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=0)
        wanted = plain(lambda a, b: analytic_kernels(net, a, b), x1, other)
        for mine, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=0)


class Branches(nn.Module):
    """A layer, then a factor of the layer's input, and only then the layer's activation."""

    def __init__(self, make: Callable[[int, int], nn.Module], n_in: int) -> None:
        super().__init__()
        self.a, self.b = make(n_in, 4), make(4, 4)
        self.c, self.d = make(4, 4), make(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, half = self.b(y), 0.5 * y
        return self.c(torch.relu(b)) + self.d(torch.relu(half))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_value_that_a_layer_reads_late(pooled: bool) -> None:
    """A layer is done with the activation after it, and its input must be there until then."""
    if pooled:
        make: Callable[[int, int], nn.Module] = lambda i, o: conv(i, o, padding=1)  # noqa: E731
        net: nn.Module = nn.Sequential(Branches(make, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        x = torch.randn(3, 3, 4, 5, dtype=torch.float64)
    else:
        net, x = Branches(dense, 3), torch.randn(3, 3, dtype=torch.float64)
    other = torch.randn_like(x)
    got = analytic_kernels(net, x, other)
    wanted = plain(lambda a, b: analytic_kernels(net, a, b), x, other)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


# Window, step, padding along both axes, and how many windows then have a position in common.
WINDOWS = {
    "three": ((3, 3), (1, 1), (0, 0), (3, 3)),
    "three and zeros": ((3, 3), (1, 1), (1, 1), (3, 3)),
    "three by two steps": ((3, 3), (2, 2), (1, 1), (2, 2)),
    "one axis": ((1, 4), (1, 1), (0, 2), (1, 4)),
    "different axes": ((5, 2), (2, 1), (2, 0), (3, 2)),
    "apart": ((1, 2), (2, 3), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("pooled", [False, True])
def test_averages_whose_windows_overlap(name: str, pooled: bool) -> None:
    window, step, padding, most = WINDOWS[name]
    pool = nn.AvgPool2d(window, step, padding)
    body = [conv(2, 4, padding=1), nn.ReLU(), pool, conv(4, 4, 2, padding=1), nn.ReLU()]
    x = torch.randn(3, 2, 7, 8, dtype=torch.float64)
    size = nn.Sequential(*body)(x).shape[1:].numel()
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pooled else [nn.Flatten(), dense(size, 4)]
    net = nn.Sequential(*body, *end)
    assert analytic_explain(net, x).steps[2].loop == 1
    with evaluation_mode(x, None, None):
        program = read(net, x, None, x.dtype)
        parts = fused.partition(program, plan(program), double=True)
    (windows,) = parts.regions[0].averages.values()
    assert tuple(w.most for w in windows) == most
    other = torch.randn(2, *x.shape[1:], dtype=torch.float64)
    for second in (None, other):
        got = analytic_kernels(net, x, second)
        wanted = plain(lambda a, b: analytic_kernels(net, a, b), x, second)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


JOBS: dict[str, tuple[Callable[[Tensor, Tensor | None], Tensor], tuple[int, ...]]] = {
    "gap": (CNTK(3, pooling="gap", sigma_b=0.1), (2, 6, 5)),
    "gap, float32": (CNTK(3, pooling="gap", dtype=torch.float32), (2, 6, 5)),
    "flatten": (CNTK(3, sigma_b=0.1), (2, 6, 5)),
    "borders": (lambda a, b: analytic_kernels(_borders(), a, b).ntk, (2, 6, 5)),
    "mlp": (lambda a, b: mlp_kernels(a, b, 4).ntk, (30,)),
    "mlp, float32": (lambda a, b: mlp_kernels(a, b, 4, dtype=torch.float32).ntk, (3,)),
    "pool inside": (
        lambda a, b: analytic_kernels(_pool_inside(), a, b).ntk,
        (2, 6, 5),
    ),
}


def _pool_inside() -> nn.Module:
    end = [nn.AvgPool2d(3, 1, 1), conv(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(conv(2, 4), nn.ReLU(), *end)


def _borders() -> nn.Module:
    body = [conv(2, 4, padding=1, padding_mode="reflect"), nn.ReLU(), conv(4, 4, padding=1)]
    return nn.Sequential(*body, nn.ReLU(), nn.Flatten(), dense(120, 4))


@pytest.mark.parametrize("name", JOBS)
def test_no_digit_depends_on_the_size_of_the_job(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, shape = JOBS[name]
    x1, x2 = torch.randn(19, *shape), torch.randn(11, *shape)
    whole, both = kernel(x1, None), kernel(x1, x2)
    assert torch.equal(whole, whole.T)
    assert torch.equal(kernel(x1[3:4], x2[5:6]), both[3:4, 5:6])
    assert torch.equal(kernel(x1[7:], x2[:2]), both[7:, :2])
    assert torch.equal(kernel(x1[:5], None), whole[:5, :5])
    assert torch.equal(kernel(x1[:5], x1[9:]), whole[:5, 9:])
    for threads, work in ((1, 1), (3, 1 << 14)):
        monkeypatch.setattr("torch_ntk.analytic.engine._blocks._MOST_WORK", work)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert torch.equal(kernel(x1, None), whole)
        assert torch.equal(kernel(x1, x2), both)


@pytest.mark.parametrize("activation", ["tanh", "elu"])
@pytest.mark.parametrize("pooling", ["gap", "none"])
def test_no_digit_depends_on_how_long_a_series_is(activation: str, pooling: str) -> None:
    """It is as long as the largest variance needs."""
    x = torch.randn(4, 2, 5, 4)
    x[3] *= 4

    def kernel(a: Tensor, b: Tensor | None) -> Tensor:
        if pooling == "gap":
            return CNTK(3, pooling="gap", activation=activation)(a, b)
        rows = a.flatten(1), None if b is None else b.flatten(1)
        return mlp_kernels(*rows, 3, activation=activation).ntk

    whole = kernel(x, None)
    assert torch.equal(kernel(x[:3], None), whole[:3, :3])
    assert torch.equal(kernel(x[1:2], x[2:]), whole[1:2, 2:])


# Borders that mix displacements, transposed layers, windows around one position, strides that
# differ, weights at each position.
NOT_ALL_IN_LOOPS = {
    *("conv_circular_full", "conv_reflect", "conv_replicate", "transposed_1d", "u_net"),
    *("depthwise", "three_axes_flat", "three_axes_gap", "three_axes_pool"),
    *("pool_then_activation", "one_axis_pool", "pooled_twice", "local_flat", "local_gap"),
}


def test_what_can_be_is_in_loops() -> None:
    """Else the tests above would compare tensor operations with themselves."""
    found = set()
    for net in NETS:
        x = net.inputs(2)
        with evaluation_mode(x, None, None):
            program = read(net.build(4), x, None, x.dtype)
            parts = fused.partition(program, plan(program), double=True)
        alone = [program.steps[i] for i in parts.reasons]
        if any(s.positions != (1, 1) for s in alone):
            found.add(net.name)
    assert found <= NOT_ALL_IN_LOOPS, found - NOT_ALL_IN_LOOPS


FORMULAS = {
    "exp": DualExp(0.8, 0.7),
    "square": DualSquare(),
    "line": DualAffine(0.7, 0.4, "line"),
    "gaussian": DualGaussian(1.3, -0.4),
    "polynomial": DualPolynomial([0.2, 0.7, -0.3, 0.1]),
    "rectified power": DualRectifiedPower(3),
    "sinusoid": DualSinusoid(1.2, 0.8, 0.5),
    "sine": DualSin(),
    "gelu": DualGELU(),
    "tanh": DualQuadrature(torch.tanh),
    "hardtanh": DualQuadrature(nn.Hardtanh(-0.4, 0.7)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_with_a_formula(name: str) -> None:
    x = 0.5 * torch.randn(5, 2, 3, 4, dtype=torch.float64)
    x[1] = x[0] + 1e-4 * x[2]
    x[3] = 0
    other = x[1:].clone()
    kernel = CNTK(3, pooling="gap", activation=FORMULAS[name], sigma_b=0.2, kernel_size=1)
    for second in (None, other):
        (wanted,) = plain(lambda a, b: (kernel(a, b),), x, second)
        torch.testing.assert_close(kernel(x, second), wanted, rtol=1e-10, atol=1e-13)
        rows = x.flatten(1), None if second is None else second.flatten(1)
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
            options = {"depth": 3, "activation": FORMULAS[name], "sigma_w": 0.9}
            got = mlp_kernels(*rows, dtype=dtype, **options)
            wanted_both = plain(lambda a, b: mlp_kernels(a, b, **options), *rows)  # noqa: B023
            for mine, right in zip(got, wanted_both, strict=True):
                torch.testing.assert_close(mine.double(), right, rtol=tolerance, atol=tolerance)
        x_near = x.flatten(1)[:2]
        near = mlp_kernels(x_near, depth=2, activation=FORMULAS[name], sigma_b=0.0).nngp
        assert float(near[0, 0] + near[1, 1] - 2 * near[0, 1]) > -1e-15
