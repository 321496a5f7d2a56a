"""Kernels of drawn networks by a slow recursion that shares no code with the package.

It works on the drawn description and not on the module, in NumPy: covariances of all pairs of
positions of all pairs of images, taps and pooling windows by index arithmetic, expectations by
formulas or by a double integral.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from attack.analytic_grammar import Spec, out_size, pool_windows
from scipy.special import erf

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
