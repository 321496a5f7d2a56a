"""Products of independent features: branches, gates of channels, gated linear units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_nets import Function, Plus, conv, conv1d, dense
from test_lift_reference import agrees
from torch import Tensor, nn

from torch_ntk import Erf, analytic_nngp, analytic_ntk


class Product(nn.Module):
    """The product of two branches."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.second(x)


class Excited(nn.Module):
    """Squeeze and excitation: a gate for each channel, from the means of all channels."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(dense(n, n), nn.ReLU(), dense(n, n), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        gate = self.inner(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)
        return x * gate.expand_as(x)


def product(n: int, outputs: int = 8) -> nn.Module:
    return nn.Sequential(
        dense(6, n),
        Product(
            nn.Sequential(dense(n, n, 1.1, 0.2), nn.ReLU(), dense(n, n)),
            nn.Sequential(dense(n, n, 0.9), Erf(), dense(n, n)),
        ),
        dense(n, outputs, 1.0),
    )


def excited(n: int, outputs: int = 8) -> nn.Module:
    return nn.Sequential(
        *(conv(3, n, padding=1), nn.ReLU(), Excited(n), conv(n, n, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(n, outputs)),
    )


def gated(n: int, outputs: int = 8) -> nn.Module:
    return nn.Sequential(
        *(dense(6, 2 * n), nn.GLU(), dense(n, 2 * n)),
        *(Function(lambda t: F.glu(t, 1)), dense(n, outputs)),
    )


def swiglu(n: int, outputs: int = 8) -> nn.Module:
    """Of tokens, with a residual sum around it."""

    def gate(t: Tensor) -> Tensor:
        one, two = t.chunk(2, -1)
        return F.silu(one) * two

    body = nn.Sequential(dense(n, 2 * n), Function(gate), dense(n, n))
    end = Function(lambda t: t.mean(1))
    return nn.Sequential(dense(3, n), Plus(body), nn.ReLU(), end, dense(n, outputs))


NETS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "product": (product, (6,)),
    "excited": (excited, (3, 3, 3)),
    "gated": (gated, (6,)),
    "swiglu": (swiglu, (4, 3)),
}


def test_values_of_neural_tangents() -> None:
    net = product(4)
    net[0] = dense(10, 4)
    agrees("product", net)


def test_gradients_in_inputs() -> None:
    """Of a product of branches, and of a gate that all positions have in common."""
    gate = nn.Sequential(nn.AdaptiveAvgPool1d(1), conv1d(3, 3, 1), Erf())
    net = nn.Sequential(conv1d(2, 3), Plus(Product(nn.Sequential(Erf(), conv1d(3, 3, 1)), gate)))
    x = 0.5 * torch.randn(2, 2, 4, dtype=torch.float64)
    y = torch.randn(1, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda t: torch.cat([analytic_ntk(net, t), analytic_ntk(net, t, y)], 1),
        x.requires_grad_(),
    )


def test_small_distances_are_kept() -> None:
    """The distance of two products against float64 of the same with an offset of 1e-3."""
    net = nn.Sequential(product(3), nn.ReLU())
    x = torch.randn(1, 6, dtype=torch.float64)
    step = torch.randn(1, 6, dtype=torch.float64)

    def distance(size: float) -> float:
        k = analytic_nngp(net, torch.cat([x, x + size * step]))
        return float(k[0, 0] + k[1, 1] - 2 * k[0, 1])

    near = torch.cat([x + 1e-9 * i * step for i in range(3)])
    assert torch.linalg.eigvalsh(analytic_nngp(net, near))[0] > -1e-15
    assert distance(2e-4) / distance(1e-4) == pytest.approx(4, rel=1e-2)


def test_a_gate_in_other_words() -> None:
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)

    class Other(Excited):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mean((2, 3)))[:, :, None, None] * x

    wanted = analytic_ntk(excited(4), x)
    net = excited(4)
    net[2] = Other(4)
    torch.testing.assert_close(analytic_ntk(net, x), wanted, rtol=1e-12, atol=0)


def test_halves_that_overlap_are_independent_channel_by_channel() -> None:
    """Units 0…3 times units 2…5: another unit in each place, so the product of the kernels."""
    net = nn.Sequential(dense(6, 6), Function(lambda t: t[:, :4] * t[:, 2:]), dense(4, 2))
    halves = nn.Sequential(dense(6, 8), Function(lambda t: t[:, :4] * t[:, 4:]), dense(4, 2))
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(analytic_ntk(net, x), analytic_ntk(halves, x), rtol=1e-12, atol=0)


OTHER_UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "every other one": lambda t: t[:, ::2] * torch.sigmoid(t[:, 1::2]),
    "backwards": lambda t: F.glu(t.flip(1), 1),
    "shuffled": lambda t: F.glu(F.channel_shuffle(t, 2), 1),
    "in another order": lambda t: t[:, [0, 2, 4]] * torch.sigmoid(t[:, [2, 1, 3]]),
}


@pytest.mark.parametrize("name", OTHER_UNITS)
def test_gates_of_other_units_of_one_layer(name: str) -> None:
    """In whatever order they are, no channel is of one unit in both."""
    x = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    nets = (
        nn.Sequential(conv(2, 6, 2), Function(f), nn.Flatten(), dense(18, 2))
        for f in (OTHER_UNITS[name], lambda t: F.glu(t, 1))
    )
    one, two = (analytic_ntk(net, x) for net in nets)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


DIFFERENT_UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum of every other one": lambda t: torch.relu(t[:, ::2] + t[:, 1::2]),
    "sum of functions of them": lambda t: torch.relu(t[:, ::2]) + torch.tanh(t[:, 1::2]),
    "maximum of them": lambda t: torch.maximum(t[:, ::2], t[:, 1::2]),
    "difference, moved": lambda t: t[:, ::2] - t[:, 1::2].flip(-1),
    "sum with itself backwards": lambda t: t + t.flip(1),
    "halves of positions that were channels": lambda t: F.glu(F.pixel_shuffle(t, 2), 1),
}


@pytest.mark.parametrize("name", DIFFERENT_UNITS)
def test_different_units_are_not_one_value(name: str) -> None:
    net = nn.Sequential(conv(2, 8, 2), Function(DIFFERENT_UNITS[name]), nn.Flatten())
    with pytest.raises(ValueError, match=r"not independent|function of two features"):
        analytic_ntk(net, torch.randn(2, 2, 4, 3, dtype=torch.float64))


def test_channels_that_were_moved_by_a_concatenation() -> None:
    """The last units of `one` are those of `both` in the same places, as an average shows them."""

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.other, self.last = dense(3, 8), dense(3, 4), dense(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            both = self.both(x)
            one = torch.cat([self.other(x), both[..., 4:]], -1)
            return self.last(one.mean(1) * both.mean(1))

    with pytest.raises(ValueError, match=r"not independent at 'mul'.*The same units"):
        analytic_ntk(Moved(), torch.randn(2, 5, 3, dtype=torch.float64))


DEPENDENT: dict[str, Callable[[Tensor], Tensor]] = {
    "the same channels": lambda t: t[:, :3] * torch.relu(t + 0)[:, :3].flip(-1),
    "another position": lambda t: t * t.roll(1, -1),
    "some equal channels": lambda t: t[:, [0, 1, 2]] * t[:, [0, 2, 1]],
    "its norm": lambda t: t * F.layer_norm(t, (4, 2, 2)),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_products_of_dependent_features_are_refused(name: str) -> None:
    net = nn.Sequential(conv(3, 4), Function(DEPENDENT[name]), conv(4, 2, 1))
    with pytest.raises(ValueError, match=r"not independent at 'mul.*NTK layer at the end"):
        analytic_ntk(net, torch.randn(2, 3, 4, 4, dtype=torch.float64))
