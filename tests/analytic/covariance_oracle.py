"""Infinite-width kernels by hand: every covariance between every two positions of every two images.

Nothing here is shared with the package: taps are found by padding an image of indices with torch,
pooling matrices by pooling basis images, and expectations by formulas or plain quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from small_nets import Beside, Plus, Times
from torch import Tensor, nn

from torch_ntk import (
    Abs,
    Cos,
    Erf,
    NTKConv1d,
    NTKConv2d,
    NTKConv3d,
    NTKConvLocal2d,
    NTKConvTranspose1d,
    NTKConvTranspose2d,
    NTKConvTranspose3d,
    NTKLinear,
    Sin,
)

TRANSPOSED = (NTKConvTranspose1d, NTKConvTranspose2d, NTKConvTranspose3d)
LAYERS = (NTKLinear, NTKConv1d, NTKConv2d, NTKConv3d, *TRANSPOSED)
POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


@dataclass
class Covariances:
    """K and Θ `[N, S, N, S]` over S positions, in the shape `spatial` until they are flattened.

    Channels of different kinds keep their own in `parts`; K and Θ are the averages.
    """

    k: Tensor
    t: Tensor
    channels: int
    spatial: tuple[int, ...]
    parts: tuple[Covariances, ...] = ()


def kernels(net: nn.Module, x1: Tensor, x2: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """NNGP and NTK `[N1, N2]`, float64."""
    x = x1 if x2 is None else torch.cat([x1, x2])
    flat = x.detach().double().flatten(2) if x.ndim > 2 else x.detach().double()[:, :, None]
    k = torch.einsum("ncs,mct->nsmt", flat, flat) / x.shape[1]
    s = through(net, Covariances(k, torch.zeros_like(k), x.shape[1], tuple(x.shape[2:])))
    k, t = _over_positions(s.k), _over_positions(s.t)
    rows = slice(0, len(x1))
    columns = rows if x2 is None else slice(len(x1), None)
    return k[rows, 0, columns, 0], t[rows, 0, columns, 0]


def through(m: nn.Module, s: Covariances) -> Covariances:
    """What module `m` makes of the covariances."""
    if isinstance(m, nn.Sequential):
        for child in m:
            s = through(child, s)
        return s
    if isinstance(m, Plus):
        return _sum(through(m.first, s), through(m.second, s))
    if isinstance(m, Beside):
        return _beside([through(b, s) for b in m.branches])
    if isinstance(m, Times):
        return Covariances(m.factor**2 * s.k, m.factor**2 * s.t, s.channels, s.spatial)
    if isinstance(m, nn.Identity):
        return s
    if s.parts and not isinstance(m, LAYERS):
        return _beside([through(m, part) for part in s.parts])
    if isinstance(m, nn.Flatten):
        return Covariances(s.k, s.t, s.channels * math.prod(s.spatial), ())
    if isinstance(m, NTKConvLocal2d):
        return _local(m, s)
    if isinstance(m, LAYERS):
        return _layer(m, s)
    if isinstance(m, POOLS):
        return _pool(m, s)
    if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
        return _normalized(m, s)
    return _activated(m, s)


def _sum(a: Covariances, b: Covariances) -> Covariances:
    assert a.spatial == b.spatial
    return Covariances(a.k + b.k, a.t + b.t, a.channels, a.spatial)


def _beside(branches: list[Covariances]) -> Covariances:
    parts = tuple(p for b in branches for p in (b.parts or (b,)))
    channels = sum(p.channels for p in parts)
    k = sum(p.k * (p.channels / channels) for p in parts)
    t = sum(p.t * (p.channels / channels) for p in parts)
    return Covariances(k, t, channels, parts[0].spatial, parts)


def _over_positions(a: Tensor) -> Tensor:
    """Positions as features: the mean over the same position in both images."""
    return torch.einsum("nsms->nm", a)[:, None, :, None] / a.shape[1]


def _sources(m: nn.Module, spatial: tuple[int, ...]) -> tuple[list[Tensor], tuple]:
    """Per tap the positions that the outputs read, 0 for a zero and else their number from 1."""
    image = torch.arange(1.0, math.prod(spatial) + 1).view(1, 1, *spatial)
    options = {n: getattr(m, n) for n in ("kernel_size", "stride", "padding", "dilation")}
    name = f"Conv{'Transpose' if m.transposed else ''}{len(spatial)}d"
    if m.transposed:
        options["output_padding"] = m.output_padding
    else:
        options["padding_mode"] = m.padding_mode
    one = getattr(nn, name)(1, 1, bias=False, **options).requires_grad_(False)
    found = []
    for tap in np.ndindex(*m.kernel_size):
        one.weight.zero_()
        one.weight[(0, 0, *tap)] = 1
        read = one(image)
        found.append(read.flatten().round().long())
    return found, tuple(read.shape[2:])


def _layer(m: nn.Module, s: Covariances) -> Covariances:
    if isinstance(m, NTKLinear):
        assert not s.spatial
        taps, spatial = [torch.ones(1, dtype=torch.long)], ()
        s = Covariances(_over_positions(s.k), _over_positions(s.t), s.channels, ())
    else:
        taps, spatial = _sources(m, s.spatial)
    trained = s.t + s.k if m.weight.requires_grad else s.t
    shift = m.sigma_b**2 if m.bias is not None else 0.0
    shift_t = shift if m.bias is not None and m.bias.requires_grad else 0.0
    k, t = (m.sigma_w**2 * sum(_read(a, tap) for tap in taps) / len(taps) for a in (s.k, trained))
    channels = m.out_features if isinstance(m, NTKLinear) else m.out_channels
    return Covariances(k + shift, t + shift_t, channels, spatial)


def _local(m: NTKConvLocal2d, s: Covariances) -> Covariances:
    """The shared convolution, with everything between different positions taken away."""
    (rows, columns), (p, q) = m.kernel_size, m.padding
    shared = NTKConv2d(1, m.out_channels, (rows, columns), m.stride, (p, q))
    shared.sigma_w, shared.sigma_b = m.sigma_w, m.sigma_b
    if m.bias is None:
        shared.bias = None
    made = _layer(shared, s)
    same = torch.eye(made.k.shape[1], dtype=made.k.dtype)[:, None]
    return Covariances(made.k * same, made.t * same, made.channels, made.spatial)


def _read(a: Tensor, tap: Tensor) -> Tensor:
    padded = F.pad(a, (1, 0, 0, 0, 1, 0))  # position 0 is a zero
    return padded[:, tap][:, :, :, tap]


def _pool(m: nn.Module, s: Covariances) -> Covariances:
    size = math.prod(s.spatial)
    basis = torch.eye(size, dtype=torch.float64).view(size, 1, *s.spatial)
    pooled = m(basis)
    matrix = pooled.flatten(1)  # [size, size_out]
    k, t = (torch.einsum("nsmr,sp,rq->npmq", a, matrix, matrix) for a in (s.k, s.t))
    return Covariances(k, t, s.channels, tuple(pooled.shape[2:]))


def _normalized(m: nn.LayerNorm | nn.GroupNorm, s: Covariances) -> Covariances:
    variance = torch.einsum("nsns->n", s.k) / s.k.shape[1] + m.eps
    scale = variance.rsqrt()
    product = scale[:, None, None, None] * scale[:, None]
    k, t = s.k * product, s.t * product
    if m.weight is not None and m.weight.requires_grad:
        t = t + k
    if m.bias is not None and m.bias.requires_grad:
        t = t + 1
    return Covariances(k, t, s.channels, s.spatial)


def _activated(m: nn.Module, s: Covariances) -> Covariances:
    n, size = s.k.shape[:2]
    k = s.k.reshape(n * size, n * size)
    q = k.diagonal()
    kappa, slope = dual(m, k, q[:, None], q[None])
    return Covariances(kappa.view_as(s.k), slope.view_as(s.k) * s.t, s.channels, s.spatial)


def dual(m: nn.Module, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """E φ(u)φ(v) and E φ'(u)φ'(v)."""
    if isinstance(m, nn.ReLU):
        return _rectified(k, q1, q2, 1.0, 0.0)
    if isinstance(m, nn.LeakyReLU):
        return _rectified(k, q1, q2, 1.0, m.negative_slope)
    if isinstance(m, Abs):
        return _rectified(k, q1, q2, 1.0, -1.0)
    if isinstance(m, Erf):
        a, b, c = 1 + 2 * q1, 1 + 2 * q2, 2 * k
        return 2 / math.pi * torch.asin(c / (a * b).sqrt()), 4 / math.pi / (a * b - c * c).sqrt()
    if isinstance(m, (Sin, Cos)):
        even, odd = ((-(q1 + q2) / 2).exp() * f(k) for f in (torch.cosh, torch.sinh))
        return (odd, even) if isinstance(m, Sin) else (even, odd)
    return _quadrature(m, k, q1, q2)


def _rectified(k: Tensor, q1: Tensor, q2: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """φ(u) = a·max(u, 0) + b·min(u, 0), as (a - b)·max(u, 0) + b·u."""
    norm = (q1 * q2).sqrt()
    c = torch.where(norm > 0, k / norm, 0.0).clamp(-1, 1)
    angle = torch.acos(c)
    relu = norm * (torch.sin(angle) + (math.pi - angle) * c) / (2 * math.pi)
    step = (math.pi - angle) / (2 * math.pi)
    # E max(u,0) v = k/2, and E 1[u>0] = 1/2.
    d = a - b
    return d * d * relu + d * b * k + b * b * k, d * d * step + d * b + b * b


def _quadrature(
    f: Callable[[Tensor], Tensor], k: Tensor, q1: Tensor, q2: Tensor
) -> tuple[Tensor, Tensor]:
    # The trapezoidal rule: for these smooth functions exact to rounding.
    nodes = torch.arange(-72, 73, dtype=torch.float64) / 8
    weights = torch.exp(-nodes.square() / 2) / (8 * math.sqrt(2 * math.pi))
    norm = (q1 * q2).sqrt()
    c = torch.where(norm > 0, k / norm, 0.0).clamp(-1, 1)
    rest = (1 - c * c).sqrt()
    s1, s2 = torch.broadcast_tensors(q1.sqrt(), q2.sqrt())
    value, slope = torch.zeros_like(c), torch.zeros_like(c)
    for z1, w1 in zip(nodes, weights, strict=True):
        u, du = _with_slope(f, s1 * z1)
        v, dv = _with_slope(f, s2[..., None] * (c[..., None] * z1 + rest[..., None] * nodes))
        value += w1 * u * (v @ weights)
        slope += w1 * du * (dv @ weights)
    return value, slope


def _with_slope(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = f(leaf)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach(), slope
