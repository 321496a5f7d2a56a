"""Random networks of infinite width against a slow recursion that shares no code with the package.

    python -m tests.attack.analytic --minutes 30      # from the root of the repository
    python -m tests.attack.analytic --seed 12         # one network again, described

A grammar draws networks in NTK parameterization: dense and convolutional layers of every kernel
size, stride, dilation, padding and padding mode, with and without bias, trained and frozen;
activations; average pooling; layer and group normalization with trained gains; residual sums,
concatenation, factors. The oracle works on the drawn description and not on the module, in NumPy:
covariances of all pairs of positions of all pairs of images, taps and pooling windows by index
arithmetic, expectations by formulas or by a double integral.

Each network is evaluated in the ways that the engine has: of one set and of two, in fused loops of
either precision, with derivatives wanted (no fused loops), within little memory, and in blocks of
random size, on which no digit may depend.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

import torch_ntk
from torch_ntk import NTKConv1d, NTKConv2d, NTKLinear, analytic_explain, analytic_kernels
from torch_ntk.analytic.engine import _blocks

Spec = tuple[Any, ...]
WIDTH = 4
# What rounding may do: an angle of a correlation that is 1 up to rounding is known to 1e-8.
TOLERANCE = 3e-7
# The same in float32, of an angle that is known to 1e-3, through several layers.
SINGLE = 1e-2


# -- the grammar ---------------------------------------------------------------------------------


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


# -- the module ----------------------------------------------------------------------------------


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


# -- the oracle ----------------------------------------------------------------------------------

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Part:
    """Channels of one law: K and Θ `[N, S, N, S]` over all positions of all images.

    `gain` is K of normalized features whose trained gain has not been added to Θ yet.
    """

    k: Array
    t: Array
    channels: int
    gain: Array | None = None

    def settled(self) -> Part:
        """With the gain's part in Θ: ∂(g u)/∂g = u, so it is K."""
        t = self.t if self.gain is None else self.t + self.gain
        return Part(self.k, t, self.channels)


@dataclass
class Oracle:
    """Goes through a description.

    Attributes:
        same: `[N, N]`, which images are identical; their correlation at a position is exactly 1.
        spatial: Positions along each axis now.
        parts: The features now.
    """

    same: Array
    spatial: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)

    def through(self, specs: list[Spec]) -> None:
        for spec in specs:
            self.one(spec)

    def one(self, spec: Spec) -> None:
        match spec:
            case ("dense", o):
                self.weights(o, [[0]], ())
            case ("conv", o):
                taps, spatial = conv_taps(o, self.spatial)
                self.weights(o, taps, spatial)
            case ("activation", name):
                self.parts = [self.activated(name, p) for p in self.parts]
            case ("scale", c):
                self.parts = [
                    Part(c * c * q.k, c * c * q.t, q.channels)
                    for q in (p.settled() for p in self.parts)
                ]
            case ("flatten",):
                self.flatten()
            case ("adaptive", sizes):
                windows = [
                    [range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
                    for n, m in zip(self.spatial, sizes, strict=True)
                ]
                self.average([[(w, len(w)) for w in axis] for axis in windows])
            case ("pool", windows, options):
                self.average(
                    [
                        pool_windows(n, w, options)
                        for n, w in zip(self.spatial, windows, strict=True)
                    ]
                )
            case ("norm", o):
                self.parts = [self.normalized(o, p.settled()) for p in self.parts]
            case ("plus", body):
                inner = Oracle(self.same, self.spatial, list(self.parts))
                inner.through(body)
                (a,), (b,) = ([p.settled() for p in o.parts] for o in (self, inner))
                self.parts = [Part(a.k + b.k, a.t + b.t, a.channels)]
            case ("cat", branches):
                found: list[Part] = []
                for body in branches:
                    inner = Oracle(self.same, self.spatial, list(self.parts))
                    inner.through(body)
                    found += inner.parts
                self.parts = found
            case _:
                raise AssertionError(spec)

    def mean(self) -> Part:
        """All channels together."""
        parts = [p.settled() for p in self.parts]
        total = sum(p.channels for p in parts)
        k: Any = sum(p.k * (p.channels / total) for p in parts)
        t: Any = sum(p.t * (p.channels / total) for p in parts)
        return Part(k, t, total)

    def weights(self, o: dict[str, Any], taps: list[list[int]], spatial: tuple[int, ...]) -> None:
        """y(p) = σ_w / √(taps · channels) Σ_a W_a x(source_a(p)) + σ_b b."""
        p = self.mean()
        seen = p.t if o["frozen"] else p.t + p.k
        k, t = (
            o["sigma_w"] ** 2 * sum(read(a, tap) for tap in taps) / len(taps) for a in (p.k, seen)
        )
        bias = o["sigma_b"] ** 2 if o["bias"] else 0.0
        t = t + (0.0 if o["frozen_bias"] else bias)
        self.parts, self.spatial = [Part(k + bias, t, o["n_out"])], spatial

    def average(self, windows: list[list[tuple[range, int]]]) -> None:
        matrix = np.ones((1, 1))
        for axis, size in zip(windows, self.spatial, strict=True):
            m = np.zeros((len(axis), size))
            for row, (inside, divisor) in enumerate(axis):
                m[row, list(inside)] = 1 / divisor
            matrix = np.kron(matrix, m)
        self.linear(matrix)
        self.spatial = tuple(len(axis) for axis in windows)

    def linear(self, m: Array) -> None:
        """x(p) ← Σ_s m[p, s] x(s)."""
        rule = "nsmr,ps,qr->npmq"
        self.parts = [
            Part(*(np.einsum(rule, a, m, m, optimize=True) for a in (p.k, p.t)), p.channels)
            for p in (q.settled() for q in self.parts)
        ]

    def flatten(self) -> None:
        """All positions of a channel are features of their own: the mean over s = s'."""
        size = max(1, math.prod(self.spatial))
        self.parts = [
            Part(*(np.einsum("nsms->nm", a)[:, None, :, None] / size for a in (p.k, p.t)),
                 p.channels * size)
            for p in (q.settled() for q in self.parts)
        ]  # fmt: skip
        self.spatial = ()

    def normalized(self, o: dict[str, Any], p: Part) -> Part:
        variance = np.einsum("nsns->n", p.k) / p.k.shape[1] + o["eps"]
        scale = 1 / np.sqrt(variance)
        product = scale[:, None, None, None] * scale[:, None]
        k, t = p.k * product, p.t * product
        return Part(k, t + (1.0 if o["shift"] else 0.0), p.channels, k if o["gain"] else None)

    def activated(self, name: str, p: Part) -> Part:
        n, size = p.k.shape[:2]
        exact = np.kron(self.same, np.eye(size)).astype(bool)
        kappa, slope, by_gain = dual(name, p.k.reshape(n * size, n * size), exact)
        t = p.t.reshape(kappa.shape) * slope
        t = t if p.gain is None else t + by_gain()
        return Part(kappa.reshape(p.k.shape), t.reshape(p.k.shape), p.channels)


def read(a: Array, sources: list[int]) -> Array:
    """Entries at the sources of each output; a zero where a source is -1."""
    index = np.array(sources)
    keep = (index >= 0).astype(float)
    taken = a[:, index][:, :, :, index]
    return taken * keep[:, None, None] * keep


def conv_taps(
    o: dict[str, Any], spatial: tuple[int, ...]
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Per tap the source of each output, positions counted row by row."""
    axes = []
    for size, a in zip(spatial, o["axes"], strict=True):
        outputs = range(out_size(size, a))
        axes.append(
            [
                [padded(i * a["stride"] + j * a["dilation"] - a["before"], size, o["mode"])
                 for i in outputs]
                for j in range(a["kernel"])
            ]
        )  # fmt: skip
    shape = tuple(out_size(n, a) for n, a in zip(spatial, o["axes"], strict=True))
    if len(spatial) == 1:
        return axes[0], shape
    return [
        [r * spatial[1] + c if r >= 0 and c >= 0 else -1 for r in rows for c in columns]
        for rows in axes[0]
        for columns in axes[1]
    ], shape


def padded(i: int, size: int, mode: str) -> int:
    """Which position index i of a padded axis shows; -1 for a zero."""
    if 0 <= i < size:
        return i
    if mode == "circular":
        return (i + 10 * size) % size
    if mode == "replicate":
        return min(max(i, 0), size - 1)
    if mode == "reflect":
        return abs(i) if i < 0 else 2 * size - 2 - i
    return -1


def dual(name: str, k: Array, exact: Array) -> tuple[Array, Array, Callable[[], Array]]:
    """E φ(u)φ(v), E φ'(u)φ'(v), and on demand E uφ'(u) vφ'(v)."""
    q = k.diagonal().copy()
    norm = np.sqrt(np.outer(q, q))
    c = np.clip(np.divide(k, norm, out=np.zeros_like(k), where=norm > 0), -1, 1)
    c[exact & (norm > 0)] = 1.0
    slopes = {"relu": (1.0, 0.0), "leaky": (1.0, 0.3), "abs": (1.0, -1.0)}
    if name in slopes:
        a, b = slopes[name]
        angle = np.arccos(c)
        # E φ(u)φ(v) by the parts of the plane where u, v have equal and unlike signs.
        above = (np.sin(angle) + (np.pi - angle) * c) / (2 * np.pi)
        across = (np.sin(angle) - angle * c) / (2 * np.pi)
        kappa = norm * ((a * a + b * b) * above - 2 * a * b * across)
        step = (np.pi - angle) / (2 * np.pi)
        slope = (a * a + b * b) * step + 2 * a * b * angle / (2 * np.pi)
        return kappa, slope, lambda: kappa
    full = c * norm
    if name == "erf":
        outer = np.outer(1 + 2 * q, 1 + 2 * q)
        kappa = 2 / np.pi * np.arcsin(2 * full / np.sqrt(outer))
        slope = 4 / np.pi / np.sqrt(outer - 4 * full**2)
    elif name in ("sin", "cos"):
        damped = np.exp(-(q[:, None] + q) / 2)
        odd, even = damped * np.sinh(full), damped * np.cosh(full)
        kappa, slope = (odd, even) if name == "sin" else (even, odd)
    else:
        (kappa, slope), _ = integrals(name, q, c)
    return kappa, slope, lambda: integrals(name, q, c)[1]


def integrals(name: str, q: Array, c: Array) -> tuple[tuple[Array, Array], Array]:
    """The same by the trapezoidal rule over the plane.

    It errs by exp(-2π d/h) for a step h and a pole of φ(√q z) at distance d from the real axis;
    the nearest one is that of tanh, d = π/(2√q).
    """
    step = min(1 / 6, 0.4 / math.sqrt(q.max() + 1e-300))
    nodes = np.arange(-math.ceil(8 / step), math.ceil(8 / step) + 1) * step
    weights = np.exp(-(nodes**2) / 2) * step / math.sqrt(2 * math.pi)
    i, j = np.triu_indices(len(q))
    s1, s2, corr = np.sqrt(q[i]), np.sqrt(q[j]), c[i, j]
    rest = np.sqrt(1 - corr**2)
    sums = np.zeros((3, len(i)))
    for z, w in zip(nodes, weights, strict=True):
        u = s1 * z
        v = s2[:, None] * (corr[:, None] * z + rest[:, None] * nodes)
        (f, df), (g, dg) = function(name, u), function(name, v)
        sums += w * np.stack(
            [f * (g @ weights), df * (dg @ weights), u * df * ((v * dg) @ weights)]
        )
    found = np.zeros((3, len(q), len(q)))
    found[:, i, j] = sums
    found[:, j, i] = sums
    return (found[0], found[1]), found[2]


def function(name: str, x: Array) -> tuple[Array, Array]:
    """φ and φ'."""
    if name == "tanh":
        y = np.tanh(x)
        return y, 1 - y * y
    if name == "erf":
        return erf(x), 2 / math.sqrt(math.pi) * np.exp(-x * x)
    if name in ("sin", "cos"):
        return (np.sin(x), np.cos(x)) if name == "sin" else (np.cos(x), -np.sin(x))
    if name == "gelu":
        below = (1 + erf(x / math.sqrt(2))) / 2
        return x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    logistic = 1 / (1 + np.exp(-x))
    if name == "silu":
        return x * logistic, logistic * (1 + x * (1 - logistic))
    assert name == "softplus"
    return np.logaddexp(0, x), logistic


def oracle(specs: list[Spec], x: Array, spatial: tuple[int, ...]) -> tuple[Array, Array]:
    """K and Θ `[N, N]` of the network's outputs for images `[N, C, ...]`."""
    flat = x.reshape(*x.shape[:2], -1)
    k = np.einsum("ncs,mct->nsmt", flat, flat) / x.shape[1]
    same = np.array([[float(np.array_equal(a, b)) for b in x] for a in x])
    state = Oracle(same, spatial, [Part(k, np.zeros_like(k), x.shape[1])])
    state.through([*specs, ("flatten",)])
    part = state.mean()
    return part.k[:, 0, :, 0], part.t[:, 0, :, 0]


# -- the attack ----------------------------------------------------------------------------------


@dataclass
class Attack:
    """One network with its inputs.

    Attributes:
        specs: The network.
        x1: The first images.
        x2: The second.
        work: Of a block in fused loops.
        single: Whether float32 is tried as well; it has loops of its own to be compiled.
    """

    specs: list[Spec]
    x1: Tensor
    x2: Tensor
    work: int
    single: bool


def draw(seed: int) -> Attack:
    """The attack of a seed."""
    rng = random.Random(seed)
    axes = rng.choice((0, 1, 2, 2, 2))
    large = axes == 2 and rng.random() < 0.25
    shape = tuple(rng.randint(2, 7 if large else 4) for _ in range(axes))
    if axes == 1:
        shape = (rng.randint(2, 9),)
    channels = rng.choice((1, 2, 3, 20))
    specs = Grammar(rng, numeric=math.prod(shape) <= 12 and rng.random() < 0.2).network(
        Features(channels, shape)
    )
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = (
        torch.randn(n, channels, *shape, generator=generator, dtype=torch.float64) for n in (3, 2)
    )
    if rng.random() < 0.3:
        x2[0] = x1[1]
    if rng.random() < 0.15:
        x1[0] = 0
    return Attack(specs, x1, x2, 1 << rng.randint(6, 14), rng.random() < 0.2)


@contextlib.contextmanager
def blocks_of(work: int) -> Iterator[None]:
    """Within it, blocks of pairs in fused loops are as large as `work` says."""
    before = _blocks._MOST_WORK
    _blocks._MOST_WORK = work
    try:
        yield
    finally:
        _blocks._MOST_WORK = before


def ways(net: nn.Module, a: Attack) -> Iterator[tuple[str, tuple[Tensor, Tensor], bool]]:
    """What it is called, K and Θ, and whether of two sets, for every way through the engine."""
    for two in (True, False):
        other = a.x2 if two else None
        yield "fused", analytic_kernels(net, a.x1, other), two
        if a.single:
            yield "float32", analytic_kernels(net, a.x1, other, dtype=torch.float32), two
        wanting = a.x1.clone().requires_grad_()
        yield "differentiable", analytic_kernels(net, wanting, other), two
        yield "little memory", analytic_kernels(net, a.x1, other, max_memory=1), two
        with blocks_of(a.work):
            yield "fused in blocks", analytic_kernels(net, a.x1, other), two


def attack(seed: int) -> str:
    """`"right"`, `"refused: …"` or what is wrong with the network of a seed."""
    a = draw(seed)
    net = build(a.specs, a.x1.ndim - 2)
    x = torch.cat([a.x1, a.x2])
    try:
        found = list(ways(net, a))
    except ValueError as error:
        if "`model` must be a network with an infinite-width limit" in str(error):
            return f"refused: {error}"
        raise
    k, t = oracle(a.specs, x.numpy(), tuple(a.x1.shape[2:]))
    n = len(a.x1)
    for way, kernels, two in found:
        columns = slice(n, None) if two else slice(0, n)
        for name, mine, wanted in zip(("NNGP", "NTK"), kernels, (k, t), strict=True):
            right = wanted[:n, columns]
            scale = np.abs(wanted).max() + 1e-300
            off = np.abs(mine.detach().numpy() - right).max() / scale
            if not off <= (SINGLE if way == "float32" else TOLERANCE):
                return f"{name}, {way}, {'two sets' if two else 'one set'}: off by {off:.2g}"
    steps = analytic_explain(net, a.x1, a.x2).steps
    # The series of activations without a formula are tensor operations, whose last digit may.
    series = any(s.loop is None and s.operation == "Activation" for s in steps)
    return "right" if series else _alike(found)


def _alike(found: list[tuple[str, tuple[Tensor, Tensor], bool]]) -> str:
    """Fused loops give the numbers of tensor operations, and no digit depends on the blocks."""
    by_way = {(way, two): kernels for way, kernels, two in found}
    for two in (True, False):
        for name, *kernels in zip(
            ("NNGP", "NTK"),
            *(by_way[way, two] for way in ("fused", "fused in blocks")),
            strict=True,
        ):
            if not torch.equal(*kernels):
                return f"{name} depends on the blocks"
            if not two and not torch.equal(kernels[0], kernels[0].T):
                return f"{name} is not symmetric"
    return "right"


def run(seeds: Iterator[int], seconds: float) -> tuple[Counter[str], dict[int, str]]:
    """Counts of outcomes, and what is wrong by seed."""
    counts: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    end = time.monotonic() + seconds
    for seed in seeds:
        if time.monotonic() > end:
            break
        try:
            outcome = attack(seed)
        except Exception:  # whatever it is, it is what the attack looks for
            outcome = traceback.format_exc(limit=-4)
        kind = outcome.split(":")[0] if outcome.startswith(("right", "refused")) else "wrong"
        counts[kind] += 1
        if kind == "wrong":
            wrong[seed] = outcome
    return counts, wrong


def main(arguments: list[str]) -> int:
    """Attack for some time, or describe one network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first", type=int, default=None, help="the first seed")
    parser.add_argument("--seed", type=int, default=None, help="this network only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.seed is not None:
        a = draw(given.seed)
        print(a.x1.shape, a.x2.shape, "blocks of", a.work, "entries")
        print(*a.specs, sep="\n")
        print(attack(given.seed))
        return 0
    first = random.SystemRandom().randrange(10**9) if given.first is None else given.first
    counts, wrong = run(itertools.count(first), 60 * given.minutes)
    print(f"seeds from {first}:", dict(counts))
    for seed, outcome in wrong.items():
        print(f"\n--seed {seed}\n{outcome}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
