"""The table of networks of which the infinite-width kernels are tested.

Widths are small: only the structure counts for the limit. `finite` builds the same network with
some width for comparison with finite networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from small_nets import ROOT2, Beside, Plus, Times, conv, conv1d, dense, frozen
from torch import Tensor, nn

from torch_ntk import Abs, Cos, Erf, Sin
from torch_ntk import nn as ntk

SCALES: dict[str, Any] = {"sigma_w": 1.3, "sigma_b": 0.2, "dtype": torch.float64}


@dataclass(frozen=True)
class Net:
    """A row.

    Attributes:
        name: Of the row.
        shape: Of a sample.
        build: From a width to the network in float64.
        finite: Whether finite networks are compared with it: of kinds of layers that the table of
            `test_finite_slopes.py` does not have.
        tolerance: Relative, where quadrature stands in on either side.
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[int], nn.Module]
    finite: bool = False
    tolerance: float = 1e-10

    def inputs(self, n: int, seed: int = 0) -> Tensor:
        """Samples in float64."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)


Kernel = int | tuple[int, int]


def mlp(activation: Callable[[], nn.Module], sigma_w: float = ROOT2) -> Callable[[int], nn.Module]:
    """Three dense layers."""
    return lambda n: nn.Sequential(
        dense(5, n, sigma_w),
        activation(),
        dense(n, n, sigma_w, 0.3),
        activation(),
        dense(n, n, sigma_w),
    )


Options = dict[str, Any]


def cnn(
    first: tuple[Kernel, Options], second: tuple[Kernel, Options], end: Callable[[], nn.Module]
) -> Callable[[int], nn.Module]:
    """Two convolutions, then an end and a dense layer of as many inputs as that leaves."""

    def build(n: int) -> nn.Module:
        layers = [conv(3, n, first[0], **first[1]), nn.ReLU(), conv(n, n, second[0], **second[1])]
        return _ended(nn.Sequential(*layers, nn.ReLU(), end()), (3, 5, 6), n)

    return build


def _ended(body: nn.Module, shape: tuple[int, ...], n: int) -> nn.Module:
    features = body(torch.zeros(1, *shape, dtype=torch.float64))
    return nn.Sequential(body, dense(features.shape[1], n, 1.0))


class Wave(nn.Module):
    """An activation of a user, of which nothing is known."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + 0.3 * torch.cos(x)


ACTIVATIONS: tuple[Net, ...] = tuple(
    Net(f"mlp_{name}", (5,), mlp(kind, sigma), name in ("relu", "of_a_user"), tolerance)
    for name, kind, sigma, tolerance in (
        ("relu", nn.ReLU, ROOT2, 1e-10),
        ("leaky_relu", lambda: nn.LeakyReLU(0.2), 1.4, 1e-10),
        ("abs", Abs, 1.0, 1e-10),
        ("erf", Erf, 1.5, 1e-10),
        ("gelu", nn.GELU, 1.4, 1e-8),
        ("sin", Sin, 1.2, 1e-10),
        ("cos", Cos, 1.2, 1e-10),
        ("tanh", nn.Tanh, 1.5, 1e-6),
        ("silu", nn.SiLU, 1.6, 1e-6),
        ("softplus", nn.Softplus, 1.0, 1e-6),
        ("of_a_user", Wave, 1.2, 1e-6),
    )
)

ONE, TWO, HIGH = {"padding": 1}, {"padding": 2}, {"padding": (4, 1)}
CIRCULAR = {"padding_mode": "circular"}
REFLECT = {"padding_mode": "reflect"}
REPLICATE = {"padding_mode": "replicate"}
PADDED = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}
COUNTED = {"stride": (2, 1), "padding": 1, "ceil_mode": True, "count_include_pad": False}


def pool(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """An average pooling at the end."""
    return lambda: nn.Sequential(nn.AvgPool2d(*arguments, **options), nn.Flatten())


def adaptive(*size: int | None) -> Callable[[], nn.Module]:
    """An adaptive one."""
    return lambda: nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten())


GAP, FLAT = adaptive(1, 1), nn.Flatten

# The two convolutions, what stands at the end, and whether finite networks are compared.
CONVOLUTIONS: tuple[Net, ...] = tuple(
    Net(f"conv_{name}", (3, 5, 6), cnn(first, second, end), finite)
    for name, first, second, end, finite in (
        ("flatten", (3, ONE), (3, {}), FLAT, False),
        ("gap", (3, ONE), (3, ONE), GAP, False),
        ("even", (2, ONE), ((4, 2), {}), GAP, False),
        ("even_flat", (2, ONE), (4, {}), FLAT, False),
        ("stride", (3, {"stride": 2, **ONE}), (2, {"stride": (1, 2)}), GAP, True),
        ("stride_flat", (3, {"stride": 2, **ONE}), (2, {"stride": (1, 2)}), FLAT, False),
        ("dilation", (3, {"dilation": 2, **TWO}), ((2, 1), {"dilation": (3, 1)}), GAP, True),
        ("dilation_flat", (3, {"dilation": 2, **TWO}), (2, {"dilation": 2}), FLAT, False),
        ("groups", (3, ONE), (3, {"groups": 2, **ONE}), GAP, True),
        ("circular", (3, ONE | CIRCULAR), ((5, 1), {"padding": (2, 0), **CIRCULAR}), GAP, False),
        ("circular_flat", (3, {"padding": (4, 1), **CIRCULAR}), (3, {}), FLAT, False),
        ("circular_full", (3, {"padding": (5, 6), **CIRCULAR}), (3, {}), GAP, False),
        ("reflect", (3, TWO | REFLECT), (3, ONE | REFLECT), GAP, False),
        ("reflect_flat", (3, TWO | REFLECT), (3, {}), FLAT, False),
        ("replicate", (3, TWO | REPLICATE), (3, {"stride": 2}), GAP, True),
        ("replicate_flat", (3, TWO | REPLICATE), (3, ONE | REPLICATE), FLAT, False),
        ("circular_and_zeros", (3, ONE | CIRCULAR), (3, ONE), GAP, False),
        ("zeros_and_circular_flat", (3, ONE), (3, ONE | CIRCULAR), FLAT, False),
        ("valid", (3, {"padding": "valid"}), ((2, 3), {"padding": "valid"}), GAP, False),
        ("valid_then_wide", (3, {}), (3, TWO), GAP, False),
        ("valid_then_circular", (3, {}), (3, ONE | CIRCULAR), GAP, False),
        (
            "same",
            (4, {"dilation": 2, "padding": "same"}),
            ((5, 1), {"padding": "same"}),
            GAP,
            False,
        ),
        (
            "wider_than_image",
            ((9, 3), {"padding": (4, 1)}),
            ((1, 13), {"padding": (0, 6)}),
            GAP,
            False,
        ),
        ("far_padding", (3, {"padding": 4}), (3, {}), GAP, False),
        ("one_tap", (1, {}), (1, {}), GAP, False),
        ("avgpool_end", (3, ONE), (3, ONE), pool(2), False),
        ("avgpool_padded", (3, ONE), (3, ONE), pool(**PADDED), False),
        ("avgpool_counted", (3, ONE), (3, ONE), pool((3, 2), **COUNTED), False),
        ("avgpool_divisor", (3, ONE), (3, ONE), pool(2, divisor_override=3), False),
        ("adaptive", (3, ONE), (3, ONE), adaptive(3, 4), False),
        ("adaptive_axis", (3, ONE), (3, ONE), adaptive(None, 1), False),
    )
)


def _deep_end(n: int) -> nn.Module:
    body = [conv(3, n, padding=1), nn.ReLU(), conv(n, n, padding=1), nn.AdaptiveAvgPool2d(1)]
    head = [nn.Flatten(), nn.ReLU(), dense(n, n), nn.ReLU(), dense(n, n)]
    return nn.Sequential(*body, *head)


def _pool_inside(n: int) -> nn.Module:
    body = [conv(3, n, padding=1), nn.ReLU(), nn.AvgPool2d(2), conv(n, n, padding=1), nn.ReLU()]
    return nn.Sequential(
        *body, nn.AvgPool2d((1, 2), 1), conv(n, n, 2), nn.ReLU(), GAP(), dense(n, n)
    )


def _pool_then_activation(n: int) -> nn.Module:
    body = [conv(3, n, padding=1), nn.AvgPool2d(2, 1), nn.ReLU(), conv(n, n, padding=1)]
    return nn.Sequential(*body, nn.AvgPool2d(3, 1, 1), nn.ReLU(), nn.Flatten(), dense(20 * n, n))


def _residual(n: int) -> nn.Module:
    body = nn.Sequential(
        nn.ReLU(), conv(n, n, padding=1), nn.ReLU(), conv(n, n, padding=1, sigma_w=0.7)
    )
    return nn.Sequential(
        conv(3, n, padding=1, sigma_w=1.0), Plus(body), nn.ReLU(), GAP(), dense(n, n)
    )


def _depthwise(n: int) -> nn.Module:
    """As in ConvNeXt and Xception: no activation before the channels are mixed."""
    one = nn.Sequential(conv(n, n, padding=1, groups=n), nn.GroupNorm(1, n, dtype=torch.float64))
    two = ntk.NTKConvTranspose2d(n, 2 * n, 2, stride=2, groups=n, **SCALES)
    first = [conv(3, n), nn.GELU(), Plus(one), conv(n, n, 1), nn.ReLU()]
    return nn.Sequential(*first, two, nn.AvgPool2d(3, 2), nn.Flatten(), dense(12 * n, n))


def _projected(n: int) -> nn.Module:
    body = nn.Sequential(conv(n, n, stride=2, padding=1), nn.ReLU(), conv(n, n, padding=1))
    down = conv(n, n, 1, stride=2, sigma_w=1.0)
    first = [conv(3, n, padding=1), nn.ReLU(), Plus(body, down)]
    return nn.Sequential(*first, nn.ReLU(), GAP(), dense(n, n))


def _input_added(n: int) -> nn.Module:
    return nn.Sequential(Plus(conv(3, 3, padding=1)), conv(3, n), nn.ReLU(), GAP(), dense(n, n))


def _dense_net(n: int) -> nn.Module:
    def more(k: int) -> nn.Module:
        return Beside(nn.Identity(), nn.Sequential(nn.ReLU(), conv(k, n, padding=1)))

    body = [conv(3, n, padding=1), more(n), more(2 * n)]
    return nn.Sequential(*body, nn.ReLU(), GAP(), dense(3 * n, n))


def _uneven_cat(n: int) -> nn.Module:
    both = Beside(
        nn.Sequential(conv(3, n, padding=1), nn.ReLU()),
        nn.Sequential(conv(3, 2 * n, 1, sigma_w=0.5), Erf()),
    )
    return nn.Sequential(both, conv(3 * n, n, 3), nn.ReLU(), nn.Flatten(), dense(12 * n, n))


def _group_norm(affine: bool) -> Callable[[int], nn.Module]:
    def build(n: int) -> nn.Module:
        def norm() -> nn.Module:
            return nn.GroupNorm(2, n, affine=affine, dtype=torch.float64)

        body = [conv(3, n, padding=1), frozen(norm(), "weight"), nn.ReLU()]
        return nn.Sequential(*body, conv(n, n, padding=1), norm(), GAP(), dense(n, n))

    return build


def _layer_norm(affine: bool) -> Callable[[int], nn.Module]:
    def build(n: int) -> nn.Module:
        def norm() -> nn.Module:
            return nn.LayerNorm(n, 0.1, elementwise_affine=affine, dtype=torch.float64)

        body = [dense(5, n), frozen(norm(), "weight"), nn.ReLU(), dense(n, n), norm(), dense(n, n)]
        return nn.Sequential(*body)

    return build


def _image_norm(n: int) -> nn.Module:
    norm = nn.LayerNorm((n, 5, 6), elementwise_affine=False)
    body = [conv(3, n, padding=1), norm, nn.ReLU(), conv(n, n), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), dense(12 * n, n))


def _one_axis(end: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(n: int) -> nn.Module:
        body = [conv1d(2, n, padding=1), nn.ReLU(), conv1d(n, n, 2, stride=2, dilation=2)]
        return _ended(nn.Sequential(*body, nn.ReLU(), end()), (2, 9), n)

    return build


def _frozen(n: int) -> nn.Module:
    body = [frozen(conv(3, n, padding=1)), nn.ReLU(), frozen(conv(n, n), "weight"), nn.ReLU()]
    return nn.Sequential(*body, GAP(), frozen(dense(n, n), "bias"))


def _scaled(n: int) -> nn.Module:
    body = [conv(3, n), Times(1.7), nn.ReLU(), Times(-0.5), conv(n, n, (2, 3)), nn.Flatten()]
    return nn.Sequential(*body, Times(3.0), Abs(), dense(4 * n, n))


def _one_position_grows(n: int) -> nn.Module:
    body = [conv(3, n, 3), nn.ReLU(), conv(n, n, 3, padding=2), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(n, 2))


def _pooled_beyond(n: int) -> nn.Module:
    body = [conv(3, n, 3), nn.ReLU(), nn.AvgPool2d(2, 1, 1), conv(n, n, 2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), dense(n, 2))


def _pooled_apart(n: int) -> nn.Module:
    body = [conv(3, n, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), dense(4 * n, 2))


def _transposed_1d(n: int) -> nn.Module:
    options = {"stride": 3, "padding": 2, "output_padding": 1, "dilation": 2}
    up = ntk.NTKConvTranspose1d(n, n, 4, groups=2, **options, **SCALES)
    return _ended(nn.Sequential(conv1d(2, n), nn.ReLU(), up, nn.ReLU(), nn.Flatten()), (2, 5), n)


def _two_pools(wide: Options, end: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Averages inside of the network, before which few displacements are needed."""

    def build(n: int) -> nn.Module:
        first = [conv(3, n, 3, **wide), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        second = [conv(n, n, 2, padding=1), nn.ReLU(), nn.AvgPool2d((3, 2), (2, 1))]
        return _ended(nn.Sequential(*first, *second, end()), (3, 7, 6), n)

    return build


def _pooled_twice(n: int) -> nn.Module:
    """One value that two averages and a stride take, and a sum of what they give."""
    two = nn.Sequential(conv(n, n, 3, stride=2, padding=1, sigma_w=0.8), nn.ReLU(), conv(n, n, 1))
    pools = Plus(nn.Sequential(nn.AvgPool2d(2), conv(n, n, 1)), two)
    body = [conv(3, n, padding=1), nn.ReLU(), pools, nn.ReLU(), conv(n, n, 2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), dense(4 * n, n), nn.ReLU(), dense(n, n))


def _borders(n: int) -> nn.Module:
    """Layers that read one value beyond its borders, each in a way of its own."""
    wide = conv(n, n, padding=2, dilation=2, padding_mode="replicate")
    body = [conv(3, n, padding=1, padding_mode="reflect"), nn.ReLU()]
    body += [Plus(conv(n, n, padding=1), wide), nn.Tanh()]
    body += [conv(n, n, (2, 3), stride=2, padding=1, padding_mode="circular"), nn.ReLU()]
    return _ended(nn.Sequential(*body, conv(n, n, padding=1), nn.Flatten()), (3, 5, 6), n)


def _two_averages(average_first: bool) -> Callable[[int], nn.Module]:
    """Averages of a value and of what a stride makes of it, which has fewer displacements."""

    def build(n: int) -> nn.Module:
        def averaged(*layers: nn.Module) -> nn.Module:
            return nn.Sequential(*layers, GAP(), nn.Flatten(), dense(n, n))

        one, two = averaged(), averaged(conv(n, n, stride=2, padding=1), nn.ReLU())
        both = Plus(one, two) if average_first else Plus(two, one)
        return nn.Sequential(conv(3, n, padding=1), nn.ReLU(), both)

    return build


def _u_net(n: int) -> nn.Module:
    inner = nn.Sequential(
        conv(n, n, 2, stride=2),
        nn.ReLU(),
        ntk.NTKConvTranspose2d(n, n, (3, 2), stride=2, **SCALES),
    )
    body = [conv(3, n, padding=1), nn.ReLU(), Plus(inner, conv(n, n, 1, sigma_w=1.0))]
    return nn.Sequential(*body, nn.ReLU(), GAP(), dense(n, n))


def _local(end: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(n: int) -> nn.Module:
        first = ntk.NTKConvLocal2d(3, n, (2, 3), input_size=(5, 6), stride=(1, 2), **SCALES)
        second = ntk.NTKConvLocal2d(n, n, 2, input_size=(4, 2), padding=1, **SCALES)
        body = [first, nn.ReLU(), conv(n, n, padding=1), Erf(), second, nn.ReLU(), end()]
        return _ended(nn.Sequential(*body, nn.Flatten()), (3, 5, 6), n)

    return build


def _three_axes(end: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(n: int) -> nn.Module:
        body = [
            ntk.NTKConv3d(2, n, (2, 1, 3), padding=(1, 0, 1), padding_mode="replicate", **SCALES),
            nn.ReLU(),
            ntk.NTKConv3d(n, n, (2, 2, 1), stride=(1, 2, 1), padding=(0, 1, 0), **SCALES),
            Erf(),
            ntk.NTKConvTranspose3d(n, n, (1, 2, 2), stride=(1, 2, 1), **SCALES),
            nn.ReLU(),
            end(),
            nn.Flatten(),
        ]
        return _ended(nn.Sequential(*body), (2, 3, 2, 3), n)

    return build


STRUCTURES: tuple[Net, ...] = (
    Net("dense_only", (5,), lambda n: dense(5, n), True),
    Net("layers_after_gap", (3, 5, 6), _deep_end),
    Net("pool_inside", (3, 5, 6), _pool_inside, True),
    Net("pool_then_activation", (3, 5, 6), _pool_then_activation),
    Net("residual", (3, 5, 6), _residual),
    Net("depthwise", (3, 5, 6), _depthwise),
    Net("projected", (3, 5, 6), _projected, True),
    Net("input_added", (3, 5, 6), _input_added),
    Net("dense_net", (3, 5, 6), _dense_net, True),
    Net("uneven_cat", (3, 5, 6), _uneven_cat),
    Net("group_norm", (3, 5, 6), _group_norm(False)),
    Net("group_norm_affine", (3, 5, 6), _group_norm(True), True),
    Net("layer_norm", (5,), _layer_norm(False)),
    Net("layer_norm_affine", (5,), _layer_norm(True), True),
    Net("layer_norm_of_images", (3, 5, 6), _image_norm),
    Net("one_axis_flat", (2, 9), _one_axis(nn.Flatten), True),
    Net(
        "one_axis_gap",
        (2, 9),
        _one_axis(lambda: nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())),
    ),
    Net(
        "one_axis_pool",
        (2, 9),
        _one_axis(lambda: nn.Sequential(nn.AvgPool1d(3, 1, 1), nn.Flatten())),
    ),
    Net("one_position_grows", (3, 3, 3), _one_position_grows),
    Net("pooled_beyond", (3, 3, 3), _pooled_beyond),
    Net("pooled_apart", (3, 3, 3), _pooled_apart),
    Net("frozen", (3, 5, 6), _frozen),
    Net("transposed_1d", (2, 5), _transposed_1d),
    Net("u_net", (3, 5, 6), _u_net),
    Net("pools_flat", (3, 7, 6), _two_pools(ONE, nn.Flatten)),
    Net("pools_gap", (3, 7, 6), _two_pools({"padding": 1, "dilation": 2}, GAP), True),
    Net("pools_circular", (3, 7, 6), _two_pools(ONE | CIRCULAR, nn.Flatten)),
    Net("pools_circular_gap", (3, 7, 6), _two_pools(ONE | CIRCULAR, GAP)),
    Net("pooled_twice", (3, 6, 6), _pooled_twice),
    Net("averaged_and_strided", (3, 5, 6), _two_averages(True)),
    Net("strided_and_averaged", (3, 5, 6), _two_averages(False)),
    Net("local_flat", (3, 5, 6), _local(nn.Identity)),
    Net("local_gap", (3, 5, 6), _local(lambda: nn.AdaptiveAvgPool2d(1))),
    Net("three_axes_flat", (2, 3, 2, 3), _three_axes(nn.Identity)),
    Net("three_axes_gap", (2, 3, 2, 3), _three_axes(lambda: nn.AdaptiveAvgPool3d(1))),
    Net("three_axes_pool", (2, 3, 2, 3), _three_axes(lambda: nn.AvgPool3d(2, 1))),
    Net("borders", (3, 5, 6), _borders),
    Net("scaled", (3, 5, 6), _scaled),
)

NETS = ACTIVATIONS + CONVOLUTIONS + STRUCTURES
