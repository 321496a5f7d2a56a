"""The grammar of random networks of infinite width, and the modules that it describes.

It draws networks in NTK parameterization: dense and convolutional layers of every kernel size,
stride, dilation, padding and padding mode, with and without bias, trained and frozen; activations;
average pooling; layer and group normalization with trained gains; residual sums, concatenation,
factors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_ntk
from torch_ntk import NTKConv1d, NTKConv2d, NTKLinear

Spec = tuple[Any, ...]
WIDTH = 4


@dataclass
class Features:
    """What the grammar knows of the features so far.

    Attributes:
        channels: How many.
        spatial: Positions along each axis.
        kind: `"data"` (no random weight yet), `"gaussian"`, `"activated"`, or `"parts"` (several
            kinds of channels side by side).
        gained: Whether a trained gain waits for what follows.
    """

    channels: int
    spatial: tuple[int, ...]
    kind: str = "data"
    gained: bool = False


class Grammar:
    """Draws one network.

    Args:
        rng: Where from.
        numeric: Whether activations that the oracle integrates numerically may occur; they are
            slow for many positions.
    """

    def __init__(self, rng: random.Random, numeric: bool) -> None:
        self.rng = rng
        names = ["relu", "relu", "relu", "leaky", "abs", "erf", "sin", "cos"]
        self.activations = names + (["gelu", "tanh", "silu", "softplus"] if numeric else [])

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def network(self, f: Features) -> list[Spec]:
        specs: list[Spec] = []
        if f.spatial and self.chance(0.08):
            specs += self.pool(f)
        specs += self.layer(f)
        for _ in range(self.rng.choice((1, 1, 2, 2, 3))):
            specs += self.between(f)
            specs += self.layer(f)
        if self.chance(0.5):
            specs += self.between(f)
        if f.spatial and self.chance(0.6):
            specs.append(("adaptive", (1,) * len(f.spatial)))
            f.spatial, f.gained = (1,) * len(f.spatial), False
        if f.spatial and self.chance(0.8):
            specs += self.flatten(f)
            specs += self.layer(f)
        return specs

    def between(self, f: Features) -> list[Spec]:
        """What may stand between two layers."""
        specs: list[Spec] = []
        if self.chance(0.12):
            specs += self.scale()
        if f.kind == "gaussian" and self.chance(0.2):
            specs += self.plus(f)
        if f.kind == "gaussian" and self.chance(0.2):
            specs += self.norm(f)
        elif f.kind == "gaussian" and f.spatial and self.chance(0.12):
            specs += self.pool(f)
        if f.kind == "gaussian" and self.chance(0.85):
            specs += self.activation(f)
        if self.chance(0.1):
            specs += self.scale()
            f.gained = False
        if f.kind == "activated" and self.chance(0.15):
            specs += self.plus(f)
        if f.kind in ("gaussian", "activated") and not f.gained and self.chance(0.15):
            specs += self.concatenation(f)
        if f.spatial and self.chance(0.15):
            specs += self.pool(f)
        if f.spatial and self.chance(0.1):
            specs += self.flatten(f)
        return specs

    def layer(self, f: Features, like: Features | None = None) -> list[Spec]:
        """A layer of weights; with `like`, one whose result has that shape."""
        rng = self.rng
        sigma_w = rng.choice((1.0, 1.3, 2**0.5))
        shared = {
            "sigma_w": sigma_w,
            "sigma_b": rng.choice((0.1, 0.3, 0.7)),
            "bias": self.chance(0.7),
            "frozen": self.chance(0.12),
            "frozen_bias": self.chance(0.12),
            "n_in": f.channels,
            "n_out": WIDTH if like is None else like.channels,
        }
        if not f.spatial:
            spec: Spec = ("dense", shared)
        else:
            axes = [self.taps(n, exact=like is not None) for n in f.spatial]
            groups = 2 if f.kind in ("gaussian", "activated") and self.chance(0.1) else 1
            if f.channels % groups or shared["n_out"] % groups or f.channels == groups:
                groups = 1
            mode = rng.choice(("zeros", "zeros", "zeros", "circular", "reflect", "replicate"))
            limit = {"circular": 0, "reflect": -1}.get(mode, 99)
            same = like is not None or self.chance(0.15)
            if same:
                for axis in axes:
                    axis.update(stride=1, before=axis["total"] // 2)
                    axis["after"] = axis["total"] - axis["before"]
            if any(a["after"] > n + limit for a, n in zip(axes, f.spatial, strict=True)):
                mode = "zeros"
            spec = ("conv", {**shared, "axes": axes, "mode": mode, "same": same, "groups": groups})
            f.spatial = tuple(out_size(n, a) for n, a in zip(f.spatial, axes, strict=True))
        f.channels, f.kind, f.gained = shared["n_out"], "gaussian", False
        return [spec]

    def taps(self, size: int, exact: bool) -> dict[str, int]:
        """A kernel along one axis that leaves at least one position."""
        rng = self.rng
        while True:
            kernel = rng.choice((1, 2, 3, 3, 3, 4, 5))
            dilation = rng.choice((1, 1, 1, 2, 3))
            padding = rng.choice((0, 1, 1, 2, 3))
            stride = 1 if exact else rng.choice((1, 1, 1, 2, 3))
            axis = {
                "kernel": kernel, "stride": stride, "dilation": dilation,
                "before": padding, "after": padding, "total": dilation * (kernel - 1),
            }  # fmt: skip
            if axis["total"] <= size + 2 and 1 <= out_size(size, axis) <= size + 2:
                return axis

    def activation(self, f: Features) -> list[Spec]:
        f.kind, f.gained = "activated", False
        return [("activation", self.rng.choice(self.activations))]

    def scale(self) -> list[Spec]:
        return [("scale", self.rng.choice((0.5, -1.0, 1.7)))]

    def norm(self, f: Features) -> list[Spec]:
        rng = self.rng
        layer = self.chance(0.4)
        gain = self.chance(0.5) and not (layer and math.prod(f.spatial) > 1)
        shift = gain and self.chance(0.7)
        f.gained = gain
        eps = rng.choice((1e-5, 0.1))
        return [("norm", {"layer": layer, "eps": eps, "gain": gain, "shift": shift,
                          "shape": (f.channels, *f.spatial)})]  # fmt: skip

    def pool(self, f: Features) -> list[Spec]:
        rng = self.rng
        f.gained = False
        if self.chance(0.3):
            size = tuple(rng.randint(1, n) for n in f.spatial)
            f.spatial = size
            return [("adaptive", size)]
        windows = []
        for n in f.spatial:
            kernel = rng.randint(1, min(3, n))
            windows.append(
                {
                    "kernel": kernel,
                    "stride": rng.choice((1, 1, 2)),
                    "padding": rng.choice((0, 0, kernel // 2)),
                }
            )
        options = {"ceil": self.chance(0.3), "count": self.chance(0.6)}
        f.spatial = tuple(
            len(pool_windows(n, w, options)) for n, w in zip(f.spatial, windows, strict=True)
        )
        return [("pool", windows, options)]

    def flatten(self, f: Features) -> list[Spec]:
        f.channels *= math.prod(f.spatial)
        f.spatial = ()
        # Channels of different positions have different laws: only a layer may follow.
        f.kind, f.gained = ("parts" if f.kind != "data" else "data"), False
        return [("flatten",)]

    def plus(self, f: Features) -> list[Spec]:
        """x + g(x), where g ends in a layer."""
        inner = Features(f.channels, f.spatial, f.kind)
        body: list[Spec] = []
        if f.kind == "gaussian" and self.chance(0.8):
            body += self.activation(inner)
        if self.chance(0.3):
            body += self.layer(inner, like=f)
            body += self.activation(inner)
        body += self.layer(inner, like=f)
        f.gained = False
        return [("plus", body)]

    def concatenation(self, f: Features) -> list[Spec]:
        branches: list[list[Spec]] = []
        channels = 0
        for _ in range(2):
            inner = Features(f.channels, f.spatial, f.kind)
            body: list[Spec] = []
            if self.chance(0.7):
                if inner.kind == "gaussian" and self.chance(0.7):
                    body += self.activation(inner)
                body += self.layer(inner, like=Features(self.rng.choice((2, WIDTH)), f.spatial))
                if self.chance(0.5):
                    body += self.activation(inner)
            branches.append(body)
            channels += inner.channels
        f.channels, f.kind, f.gained = channels, "parts", False
        return [("cat", branches)]


def out_size(size: int, axis: dict[str, int]) -> int:
    """Positions after a convolution along one axis."""
    return (size + axis["before"] + axis["after"] - axis["total"] - 1) // axis["stride"] + 1


def pool_windows(
    size: int, window: dict[str, int], options: dict[str, bool]
) -> list[tuple[range, int]]:
    """Per output the positions that are averaged, and by what their sum is divided."""
    k, s, p = window["kernel"], window["stride"], window["padding"]
    span = size + 2 * p - k
    count = (-(-span // s) if options["ceil"] else span // s) + 1
    if options["ceil"] and (count - 1) * s >= size + p:
        count -= 1  # the last window must not begin in the padding behind
    found = []
    for o in range(count):
        start, stop = o * s - p, min(o * s - p + k, size + p)
        inside = range(max(0, start), min(stop, size))
        found.append((inside, stop - start if options["count"] else len(inside)))
    return found


class Plus(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Beside(nn.Module):
    """Branches joined along the channels."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Times(nn.Module):
    """A factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.3), "abs": torch_ntk.Abs,
    "erf": torch_ntk.Erf, "sin": torch_ntk.Sin, "cos": torch_ntk.Cos, "gelu": nn.GELU,
    "tanh": nn.Tanh, "silu": nn.SiLU, "softplus": nn.Softplus,
}  # fmt: skip


def build(specs: list[Spec], axes: int) -> nn.Sequential:
    """The network in float64; `axes` is the number of axes of positions of its input."""
    return nn.Sequential(*(module(spec, axes) for spec in specs))


def module(spec: Spec, axes: int) -> nn.Module:
    """The module of one production."""
    match spec:
        case ("dense" | "conv", o):
            return layer_module(o, axes)
        case ("activation", name):
            return MODULES[name]()
        case ("scale", factor):
            return Times(factor)
        case ("flatten",):
            return nn.Flatten()
        case ("adaptive", size):
            return nn.AdaptiveAvgPool1d(size) if axes == 1 else nn.AdaptiveAvgPool2d(size)
        case ("pool", windows, options):
            kind = nn.AvgPool1d if axes == 1 else nn.AvgPool2d
            k, s, p = (tuple(w[n] for w in windows) for n in ("kernel", "stride", "padding"))
            return kind(k, s, p, ceil_mode=options["ceil"], count_include_pad=options["count"])
        case ("norm", o):
            channels = o["shape"][0]
            if o["layer"]:
                norm: Any = nn.LayerNorm(o["shape"], o["eps"], elementwise_affine=o["gain"])
            else:
                norm = nn.GroupNorm(1 if channels < 4 else 2, channels, o["eps"], o["gain"])
            if o["gain"]:
                norm.bias.requires_grad_(o["shift"])
            return norm.double()
        case ("plus", body):
            return Plus(build(body, axes))
        case ("cat", branches):
            return Beside([build(body, axes) for body in branches])
    raise AssertionError(spec)


def layer_module(o: dict[str, Any], axes: int) -> nn.Module:
    """A dense layer or a convolution."""
    common = {"sigma_w": o["sigma_w"], "sigma_b": o["sigma_b"], "bias": o["bias"]}
    if "axes" not in o:
        made: Any = NTKLinear(o["n_in"], o["n_out"], **common)
    else:
        kernel, stride, dilation, padding = (
            tuple(a[n] for a in o["axes"]) for n in ("kernel", "stride", "dilation", "before")
        )
        made = (NTKConv1d if axes == 1 else NTKConv2d)(
            o["n_in"], o["n_out"], kernel, stride=stride, dilation=dilation, groups=o["groups"],
            padding="same" if o["same"] else padding, padding_mode=o["mode"], **common,
        )  # fmt: skip
    made.weight.requires_grad_(not o["frozen"])
    if o["bias"]:
        made.bias.requires_grad_(not o["frozen_bias"])
    return made.double()
