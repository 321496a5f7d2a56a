"""What moves and mixes positions: slices, permutes, resizing, matrices, masks.

The oracle is torch: a layer of one tap without bias and with scale 1 keeps the covariance of its
inputs, so a function after it has the kernel of the same function of the inputs themselves.
"""

# ruff: noqa: E501  # tables are easier to read with one row a line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import Function, conv, dense
from test_finite_networks import deviation
from test_lift_reference import agrees, load
from torch import Tensor, nn

from torch_ntk import Erf, NTKConv2d, NTKLinear, analytic_kernels, analytic_nngp, analytic_ntk
from torch_ntk.sampling import monte_carlo_kernel

IMAGE, LINE, TOKENS = (3, 4, 6), (3, 6), (6, 3)
MATRIX = torch.randn(5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
MATRIX6 = torch.randn(6, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
BLUR = torch.ones(3, 1, 3, 3, dtype=torch.float64) / 9
WIDE = torch.randn(2, 7, 4, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

# name: (function of a batch, shape of a sample)
MAPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "slice": (lambda t: t[:, :, 1:3, ::2], IMAGE),
    "ellipsis": (lambda t: t[..., 1], IMAGE),
    "new axis": (lambda t: t[:, :, None, 2], IMAGE),
    "indices": (lambda t: t[:, :, [2, 0, 0]], IMAGE),
    "index tensor": (lambda t: t[:, :, :, torch.tensor([5, 1])], IMAGE),
    "class token": (lambda t: t[:, 0], TOKENS),
    "channels": (lambda t: t[:, :2], LINE),
    "flip": (lambda t: t.flip(-1), IMAGE),
    "roll": (lambda t: torch.roll(t, (1, 2), (2, 3)), IMAGE),
    "rotated": (lambda t: torch.rot90(t, 1, (2, 3)), IMAGE),
    "transposed image": (lambda t: t.transpose(2, 3), IMAGE),
    "channels last": (lambda t: t.permute(0, 2, 3, 1)[:, 1:], IMAGE),
    "tokens": (lambda t: t.flatten(2).transpose(1, 2)[:, 3:15], IMAGE),
    "image of tokens": (lambda t: t.transpose(1, 2).reshape(t.shape[0], 3, 2, 3)[:, :, 1], TOKENS),
    "unflatten": (lambda t: t.unflatten(2, (2, 3)).flip(2), LINE),
    "rows as features": (lambda t: t.flatten(1, 2), IMAGE),
    "columns as features": (lambda t: t.transpose(2, 3).flatten(1, 2).flip(2), IMAGE),
    "unsqueeze": (lambda t: t.unsqueeze(-1).squeeze(-1)[:, :, 1:], LINE),
    "chunk": (lambda t: t.chunk(2, -1)[1], LINE),
    "split": (lambda t: torch.split(t, [1, 5], 2)[1], LINE),
    "unbind": (lambda t: t.unbind(2)[1], IMAGE),
    "narrow": (lambda t: t.narrow(2, 1, 3), LINE),
    "select": (lambda t: t.select(-1, 2), IMAGE),
    "expanded": (lambda t: t.mean(2, keepdim=True).expand(-1, -1, 5), LINE),
    "expanded as another": (lambda t: t[:, :, :1].expand_as(t), IMAGE),
    "repeated": (lambda t: t.repeat(1, 1, 2, 1), IMAGE),
    "interleaved": (lambda t: t.repeat_interleave(2, -1), LINE),
    "zeros around": (lambda t: F.pad(t, (1, 2, 0, 1)), IMAGE),
    "cut by padding": (lambda t: F.pad(t, (-1, 1)), LINE),
    "reflected": (lambda t: F.pad(t, (1, 2, 0, 1), mode="reflect"), IMAGE),
    "replicated": (nn.ReplicationPad2d((1, 0, 2, 1)), IMAGE),
    "circular": (nn.CircularPad1d(2), LINE),
    "zero pad": (nn.ZeroPad2d(1), IMAGE),
    "nearest": (lambda t: F.interpolate(t, scale_factor=2), IMAGE),
    "nearest to a size": (lambda t: F.interpolate(t, size=(3, 9), mode="nearest-exact"), IMAGE),
    "bilinear": (lambda t: F.interpolate(t, size=(7, 4), mode="bilinear"), IMAGE),
    "aligned": (lambda t: F.interpolate(t, size=(7, 4), mode="bilinear", align_corners=True), IMAGE),
    "linear": (lambda t: F.interpolate(t, size=9, mode="linear"), LINE),
    "bicubic": (lambda t: F.interpolate(t, size=(7, 4), mode="bicubic", antialias=True), IMAGE),
    "area": (lambda t: F.interpolate(t, size=(2, 4), mode="area"), IMAGE),
    "upsample": (nn.Upsample(scale_factor=1.5, mode="bilinear"), IMAGE),
    "upsample of one": (lambda t: F.interpolate(t.mean((2, 3), keepdim=True), size=(3, 2)), IMAGE),
    "matrix from the left": (lambda t: MATRIX @ t, TOKENS),
    "matrix from the right": (lambda t: torch.matmul(t, MATRIX.T), LINE),
    "vector from the left": (lambda t: MATRIX[0] @ t, TOKENS),
    "vector from the right": (lambda t: t @ MATRIX[0], LINE),
    "matrix on images": (lambda t: t @ MATRIX.T, IMAGE),
    "matrix of one position": (lambda t: t.mean(2, keepdim=True) @ MATRIX[:1, :1], LINE),
    "einsum": (lambda t: torch.einsum("ij,ncj->nci", MATRIX, t), LINE),
    "einsum to channels last": (lambda t: torch.einsum("ncj,ij->nic", t, MATRIX), LINE),
    "einsum over both axes": (lambda t: torch.einsum("ncpq,rspq->ncrs", t, WIDE), IMAGE),
    "unfold": (lambda t: F.unfold(t, 2, padding=1, stride=2), IMAGE),
    "unfold and fold": (lambda t: F.fold(F.unfold(t, (2, 3)), (4, 6), (2, 3)), IMAGE),
    "fold of dilated patches": (lambda t: F.fold(F.unfold(t, 2, 2, 1), (5, 7), 2, 1, 0, 1)[..., :4], IMAGE),
    "pixel unshuffle": (nn.PixelUnshuffle(2), IMAGE),
    "mean over an axis": (lambda t: t.mean(2).flip(-1), IMAGE),
    "mean of tokens": (lambda t: t[:, 1:].mean(1, keepdim=True), TOKENS),
    "less the mean": (lambda t: t - t.mean((2, 3), keepdim=True), IMAGE),
    "a graph with loops": (lambda t: 1.3 * t + MATRIX6 @ t, TOKENS),
    "a polynomial of a matrix": (lambda t: 0.3 * (MATRIX6 @ (MATRIX6 @ t)) - 0.5 * (MATRIX6 @ t) + t.flip(1), TOKENS),
    "parts in another order": (lambda t: torch.cat([t[:, :, 2:], t[:, :, :2]], 2), IMAGE),
    "an average beside it": (lambda t: torch.cat([t.mean(-1, keepdim=True), 2 * t], -1), IMAGE),
    "stacked": (lambda t: torch.stack([t, t.flip(-1)], 2)[..., 1:], LINE),
    "F.linear": (lambda t: F.linear(t, MATRIX), LINE),
    "blur": (lambda t: F.conv2d(t, BLUR, padding=1, stride=2, groups=3), IMAGE),
    "sum of rows, later rolled": (lambda t: t.sum(-1).roll(1, -1), IMAGE),
}  # fmt: skip
# Those whose results have the channels on the last axis.
LAST = {
    "class token",
    "channels last",
    "tokens",
    "matrix from the left",
    "einsum to channels last",
} | {"mean of tokens", "a graph with loops", "a polynomial of a matrix"}


def ends(name: str, axes: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What may come after a function whose result has `axes` axes."""
    found = {"same position": lambda t: t, "flatten": lambda t: t.flatten(1)}
    if axes > 2 and name in LAST:
        return {**found, "average": lambda t: t.flatten(1, -2).mean(1)}
    return {**found, "average": lambda t: t.flatten(2).mean(2)} if axes > 2 else found


def as_module(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return function if isinstance(function, nn.Module) else Function(function)


def keeping(shape: tuple[int, ...], tokens: bool) -> nn.Module:
    """A layer that keeps the covariances of its inputs."""
    if tokens:
        return NTKLinear(shape[-1], 3, bias=False, dtype=torch.float64)
    if len(shape) == 2:
        return nn.Sequential(
            Function(lambda t: t.unsqueeze(-1)),
            NTKConv2d(shape[0], 3, 1, bias=False, dtype=torch.float64),
            Function(lambda t: t.squeeze(-1)),
        )
    return NTKConv2d(shape[0], 3, 1, bias=False, dtype=torch.float64)


@pytest.mark.parametrize("name", MAPS)
def test_functions_of_positions(name: str) -> None:
    function, shape = MAPS[name]
    x1, x2 = (torch.randn(n, *shape, dtype=torch.float64) for n in (3, 2))
    first = keeping(shape, shape is TOKENS)
    for after in ends(name, function(x1).ndim).values():
        net = nn.Sequential(first, as_module(function), Function(after))
        # What is known of the outputs is their covariance, the mean over channels and positions.
        one, two = (after(function(t)).flatten(1) for t in (x1, x2))
        wanted = one @ two.T / one.shape[1]
        if name == "channels":  # all channels have one law, and those of x1 have not
            wanted = analytic_nngp(nn.Sequential(first, Function(after)), x1, x2)
        found = analytic_kernels(net, x1, x2)
        # Of a linear function of one trained layer without bias both kernels are one.
        for kernel in (found.nngp, found.ntk, analytic_nngp(net, x2, x1).T):
            torch.testing.assert_close(kernel, wanted, rtol=1e-11, atol=1e-12)
        itself = analytic_nngp(net, x1), analytic_nngp(net, x1, x1.clone())
        torch.testing.assert_close(*itself, rtol=1e-11, atol=1e-12)
        if name == "channels":
            continue
        # And by tensor operations, with derivatives by the inputs.
        leaf = x1.clone().requires_grad_()
        right = after(function(leaf)).flatten(1) @ two.T / one.shape[1]
        both = analytic_ntk(net, leaf, x2), right
        torch.testing.assert_close(*both, rtol=1e-11, atol=1e-12)
        weights = torch.randn_like(wanted)
        slopes = [torch.autograd.grad((k * weights).sum(), leaf)[0] for k in both]
        torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-12)


class Graph(nn.Module):
    """Two layers with `A @ h` between them, and the mean over the nodes."""

    def __init__(self, features: int, n: int = 4, outputs: int = 2) -> None:
        super().__init__()
        options: dict[str, Any] = {"sigma_b": 0.1, "dtype": torch.float64}
        self.first = NTKLinear(features, n, sigma_w=2**0.5, **options)
        self.second = NTKLinear(n, n, sigma_w=2**0.5, **options)
        self.last = NTKLinear(n, outputs, **options)

    def forward(self, h: Tensor, a: Tensor) -> Tensor:
        h = a @ self.first(h).relu()
        return self.last(self.second(h).relu().mean(1))


def test_a_graph_for_each_sample() -> None:
    wanted = load("graph")
    net = Graph(5)
    one, two = ((wanted[f"x{i}"], wanted[f"pattern{i}"]) for i in (1, 2))
    named = [dict(zip(("h", "a"), batch, strict=True)) for batch in (one, two)]
    for first, second in ((one, two), named):
        found = analytic_kernels(net, first, second)
        torch.testing.assert_close(found.nngp, wanted["nngp12"], rtol=1e-10, atol=0)
        torch.testing.assert_close(found.ntk, wanted["ntk12"], rtol=1e-10, atol=0)
    itself = analytic_ntk(net, one)
    assert torch.equal(itself, itself.T)
    copied = tuple(t.clone() for t in one)
    torch.testing.assert_close(itself, analytic_ntk(net, one, copied), rtol=1e-10, atol=0)


def test_a_graph_beside_several() -> None:
    """A block of one sample, as the last tile of a kernel has it."""
    net, x = Graph(3), torch.randn(3, 4, 3, dtype=torch.float64)
    a = torch.rand(3, 4, 4, dtype=torch.float64)
    each = [analytic_ntk(net, (x[n : n + 1], a[n : n + 1]), (x, a)) for n in range(3)]
    torch.testing.assert_close(torch.cat(each), analytic_ntk(net, (x, a)), rtol=1e-10, atol=0)


def test_one_graph_for_all_samples_is_that_graph_for_each() -> None:
    wanted = load("graph")
    a, x = wanted["pattern1"][0], wanted["x1"]

    class Fixed(Graph):
        def __init__(self) -> None:
            super().__init__(5)
            self.register_buffer("a", a)

        def forward(self, h: Tensor) -> Tensor:
            return super().forward(h, self.a)

    each = a.expand(len(x), -1, -1)
    torch.testing.assert_close(
        analytic_ntk(Fixed(), x), analytic_ntk(Graph(5), (x, each)), rtol=1e-10, atol=0
    )


def test_a_graph_in_another_type_than_the_kernel() -> None:
    wanted = load("graph")
    a, x = wanted["pattern1"], wanted["x1"]
    whole = (a > 0.5).to(torch.int64)
    torch.testing.assert_close(
        analytic_ntk(Graph(5), (x, whole)), analytic_ntk(Graph(5), (x, whole.double()))
    )
    single = analytic_ntk(Graph(5), (x, a), dtype=torch.float32)
    torch.testing.assert_close(single, analytic_ntk(Graph(5), (x, a)).float(), rtol=1e-4, atol=0)


class Masked(nn.Module):
    """A network of sequences of different lengths: entries behind the end count for nothing."""

    def __init__(self, n: int = 4, outputs: int = 2) -> None:
        super().__init__()
        options: dict[str, Any] = {"sigma_w": 1.3, "sigma_b": 0.2, "dtype": torch.float64}
        self.first, self.second = NTKLinear(3, n, **options), NTKLinear(n, n, **options)
        self.last = NTKLinear(n, outputs, **options)
        self.erf = Erf()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x).relu() * mask.unsqueeze(-1)
        h = self.erf(self.second(h)).masked_fill(~mask[..., None], 0.0)
        return self.last(h.sum(1) / mask.sum(1, keepdim=True))


def test_loops_of_a_graph_for_each_sample() -> None:
    """`h + A @ h`, and what a mask leaves, are products with one matrix for each sample."""
    x, a = torch.randn(3, 6, 3, dtype=torch.float64), torch.rand(3, 6, 6, dtype=torch.float64)
    other = x[:2] + 0.1, a[:2].mT
    eye = torch.eye(6, dtype=torch.float64)
    looped = lambda h, a: h + a @ h  # noqa: E731
    keep = (a[:, 0] > 0.5).double()
    pairs: list[tuple[Any, Any, Any]] = [
        (lambda h, a: looped(h.relu(), a), lambda h, a: (eye + a) @ h.relu(), a),
        (lambda h, a: (h - a @ h).relu(), lambda h, a: ((eye - a) @ h).relu(), a),
        (lambda h, m: h * m[..., None] - 2 * h, lambda h, m: h * (m - 2)[..., None], keep),
    ]
    for one, two, known in pairs:
        second = other[0], (other[1] if known is a else keep[1:])
        for batches in (((x, known),), ((x, known), second)):
            found, wanted = (analytic_kernels(Written(f), *batches) for f in (one, two))
            for mine, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


def test_masks_leave_out_what_is_behind_the_end() -> None:
    """Each pair as the network without a mask has it for sequences of their lengths."""
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    lengths = torch.tensor([6, 3, 1, 3])
    mask = torch.arange(6) < lengths[:, None]
    net = Masked()
    found = analytic_kernels(net, (x, mask))

    class Cut(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, torch.ones(x.shape[:2], dtype=torch.bool))

    for length in (3, 6):
        which = (lengths == length).nonzero()[:, 0]
        direct = analytic_kernels(Cut(), x[which, :length])
        for whole, part in zip(found, direct, strict=True):
            torch.testing.assert_close(whole[which][:, which], part, rtol=1e-10, atol=0)
    # What is behind the end does not matter.
    other = torch.where(mask[..., None], x, 7.0)
    torch.testing.assert_close(found.ntk, analytic_ntk(net, (other, mask)), rtol=1e-12, atol=0)


def test_masks_at_the_same_position_keep_small_distances() -> None:
    """Without an average covariances are kept as distances, which masks and lengths scale."""
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    x = torch.cat([x, x + 1e-9, torch.randn(2, 6, 3, dtype=torch.float64)])
    weights = torch.rand(4, 6, dtype=torch.float64) + 0.5
    weights[1] = weights[0]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = NTKLinear(3, 4, sigma_b=0.3, dtype=torch.float64)

        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return (w[..., None] * self.first(x)).relu()

    def wide(x: Tensor, w: Tensor) -> Tensor:  # the covariance by hand, same positions alone
        k = w[:, None] * w * (torch.einsum("nsc,msc->nms", x, x) / 3 + 0.09)
        q = torch.einsum("nns->ns", k)
        c = (k / (q[:, None] * q).sqrt()).clamp(-1, 1)
        angle = torch.acos(c)
        root = (q[:, None] * q).sqrt()
        return (root * (angle.sin() + (torch.pi - angle) * c)).mean(-1) / (2 * torch.pi)

    found = analytic_nngp(Scaled(), (x, weights))
    torch.testing.assert_close(found, wide(x, weights), rtol=1e-7, atol=0)
    assert torch.linalg.eigvalsh(found)[0] > 0


def test_resizing_between_layers() -> None:
    net = nn.Sequential(
        *(conv(3, 4, padding=1), nn.ReLU(), nn.Upsample(size=8, mode="bilinear")),
        *(conv(4, 4, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        dense(4, 2, 1.0),
    )
    agrees("resize_bilinear", net)


def test_dense_layers_and_norms_at_each_position() -> None:
    """On `[N, T, C]` they are convolutions of one tap, and normalizations of each token."""
    x1, x2 = (torch.randn(2, 5, 3, dtype=torch.float64) for _ in "12")

    def build(n: int, outputs: int = 8) -> nn.Module:
        norm = nn.LayerNorm(n, dtype=torch.float64)
        first, second = dense(3, n), dense(n, n)
        return nn.Sequential(
            *(first, norm, nn.GELU(), second, nn.ReLU()),
            *(Function(lambda t: t.transpose(1, 2)), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
            dense(n, outputs),
        )

    limit = analytic_kernels(build(4), x1, x2)
    for kind, draws in (("ntk", 30), ("nngp", 100)):
        sampled = monte_carlo_kernel(lambda: build(128), x1, x2, n_samples=draws, kind=kind)
        wanted = getattr(limit, kind)
        assert deviation(sampled, wanted, 128) < 3, kind
        assert deviation(sampled, 1.2 * wanted, 128) > 3, kind


def test_gradients_in_features_and_in_matrices() -> None:
    net = Graph(2)
    h = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    a = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 3, 2, dtype=torch.float64), torch.rand(1, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, a: analytic_ntk(net, (h, a), other), (h, a))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    tokens = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: analytic_ntk(Masked(), (t, mask)), tokens)
    image = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    moved = nn.Sequential(
        conv(2, 3, 2),
        nn.Upsample(size=(3, 2), mode="bilinear"),
        nn.GELU(),
        nn.ZeroPad2d(1),
        conv(3, 3),
    )
    assert torch.autograd.gradcheck(lambda t: analytic_ntk(moved, t), image)


class Written(nn.Module):
    """A layer of tokens, and what a test does with it and another argument."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = NTKLinear(3, 4, dtype=torch.float64)
        self._written = forward

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self._written(self.layer(x), a)


def _agree(one: Callable[[Tensor], Tensor], two: Callable[[Tensor], Tensor]) -> None:
    """Two ways of writing what comes after a convolution are one network."""
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    found = [analytic_kernels(nn.Sequential(conv(3, 4), Function(f)), x) for f in (one, two)]
    for kernels in zip(*found, strict=True):
        torch.testing.assert_close(*kernels, rtol=1e-10, atol=0)


def test_multiples_are_known_in_every_arrangement() -> None:
    """2 x of x, moved and viewed together with it, is still a function of it."""
    _agree(lambda t: (lambda u: torch.relu(2 * u).mT * u.mT)(t), lambda t: 2 * torch.relu(t) * t)
    _agree(
        lambda t: (2 * t).permute(0, 2, 3, 1).relu() + (-t).permute(0, 2, 3, 1).relu(),
        lambda t: torch.relu(t) * 2 + torch.relu(-t),
    )
    _agree(
        lambda t: (lambda u: u.flatten(1) + (3 * u).flatten(1))(t.mean((2, 3), keepdim=True)),
        lambda t: 4 * t.mean((2, 3)),
    )


class Blurred(nn.Module):
    """A blur by a buffer, for as many channels as come."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", BLUR[:1])

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def test_a_blur_of_as_many_channels_as_come() -> None:
    x = torch.randn(3, *IMAGE, dtype=torch.float64)
    plain = as_module(lambda t: F.conv2d(t, BLUR, padding=1, groups=3))
    nets = (nn.Sequential(conv(3, 3), blur, nn.Flatten()) for blur in (Blurred(), plain))
    one, two = (analytic_ntk(net, x) for net in nets)
    torch.testing.assert_close(one, two, rtol=1e-14, atol=0)


A3, A6 = torch.ones(2, 3, 3, dtype=torch.float64), torch.ones(2, 6, 6, dtype=torch.float64)
WRONG: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, str]] = {
    "matrix of the wrong size": (lambda h, a: a @ h, A3, r"matrix of shape \(2, 3, 3\) on samples of shape \(6, 4\) at 'matmul'.*multiplies 3 positions, and there are 6.*\[N, 6, 6\]"),
    "matrix over channels": (lambda h, a: h @ a, A6, "over the axis of the channels.*NTKLinear"),
    "matrix over samples": (lambda h, a: a @ h.flatten(1), A3[0, :2, :2], "over the axis of the samples"),
    "einsum over channels": (lambda h, a: torch.einsum("ntc,nct->nt", h, a), A6, "einsum.*mixes"),
    "einsum of two features": (lambda h, a: torch.einsum("ntc,nsc->nts", h, h), A6, "one known tensor"),
    "product of two features": (lambda h, a: h @ h.mT, A6, "two features.*NTKSelfAttention"),
    "weights that differ between channels": (lambda h, a: h * a[:, :1, :4], A6, "not between channels.*one entry"),
    "division by 0": (lambda h, a: h / (a[:, :, :1] - 1), A6, "not finite"),
    "constant padding": (lambda h, a: F.pad(h, (0, 0, 1, 1), value=2.0), A6, "padding with 2"),
    "fold": (lambda h, a: F.fold(h.mT.flatten(2), (3, 2), (1, 1)), A6, "not a result of F.unfold"),
    "some samples": (lambda h, a: h[:1], A6, "index of the batch"),
    "one sample": (lambda h, a: h[0], A6, "index of the batch"),
    "samples in another order": (lambda h, a: h.flip(0), A6, "axis 0"),
    "samples as positions": (lambda h, a: h.transpose(0, 1), A6, "mixes the samples|have the samples on axis 0"),
    "samples and positions as one": (lambda h, a: h.reshape(-1, 4), A6, "mixes the samples|have the samples on axis 0|flatten"),
    "some channels as positions": (lambda h, a: torch.stack([h[..., :2], h[..., 1:3]], 1), A6, "concatenat|stack|independent"),
    "channels and positions as one": (lambda h, a: h.reshape(-1, 4, 6), A6, "same to every channel|several axes"),
    "one channel": (lambda h, a: h[..., 0], A6, r"no axis of channels.*x\[:, :1\]"),
    "channels twice": (lambda h, a: h[..., [0, 0, 1]], A6, "same to every channel"),
    "rows of other channels": (lambda h, a: h.flatten(1).unflatten(1, (4, 6)), A6, "several axes|same to every channel|flatten"),
    "features that were positions": (lambda h, a: h.flatten(1)[:, :5], A6, "input is flattened.*before the flattening"),
    "fold of some channels": (lambda h, a: F.fold(F.unfold(h.mT.unflatten(2, (2, 3)), (1, 3))[:, :6], (2, 3), (1, 3)), A6, "channels of several kinds|not a result of F.unfold"),
    "a blur of some channels": (lambda h, a: F.conv1d(h.mT, torch.ones(4, 2, 3), groups=2), A6, r"F\.conv1d.*same to each channel.*NTKConv"),
    "F.linear of channels": (lambda h, a: F.linear(h, a[0, :4, :4]), A6, "over the axis of the channels.*NTKLinear"),
    "activations side by side": (lambda h, a: torch.cat([h, h.relu()], 1), A6, "sum of values that are not independent"),
    "samples side by side": (lambda h, a: torch.cat([h, h]), A6, "axis 0.*Samples must stay"),
    "stacked samples": (lambda h, a: torch.stack([h, h]), A6, "stack along axis 0.*write their sum"),
    "parts of other shapes": (lambda h, a: torch.cat([h, h[:, 1:]], 2), A6, "different positions"),
    "channels on other axes": (lambda h, a: h[:, :4] + h[:, 1:5].mT, A6, r"channels on axes 2 and 1"),
    "zeros with more positions": (lambda h, a: torch.where(a[:, :, :1] > 0, h, torch.zeros(3, 2, 6, 4)), A6, "zeros of another shape"),
    "convolution of tokens": (lambda h, a: F.interpolate(h, scale_factor=2), A6, r"channels on axis 2.*Permute"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name: str) -> None:
    forward, a, text = WRONG[name]
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"(?s)`model` must be.*({text})"):
        analytic_ntk(Written(forward), (x, a))


def test_positions_that_a_batch_chooses() -> None:
    """The same ones for x1 and x2: the rule reads a function once for both."""
    x1, x2 = torch.randn(2, 2, 6, 3, dtype=torch.float64)
    first, second = (torch.tensor([[k, k + 1]]).expand(2, -1) for k in (0, 2))
    chosen, fixed = (Written(f) for f in (lambda h, i: h[:, i[0]], lambda h, i: h[:, :2]))
    found, wanted = (analytic_ntk(n, (x1, first), (x2, first.clone())) for n in (chosen, fixed))
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
    for net in (chosen, Written(lambda h, i: h.index_select(1, i[0]))):
        with pytest.raises(ValueError, match="an argument that differs between x1 and x2"):
            analytic_ntk(net, (x1, first), (x2, second))


def test_zeros_as_a_tensor() -> None:
    x, a = torch.randn(2, 6, 3, dtype=torch.float64), A6.tril()
    zeros = Written(lambda h, a: torch.where(a[:, 2, :, None] > 0, h, torch.zeros(6, 1)).flatten(1))
    masked = Written(lambda h, a: (h * (a[:, 2, :, None] > 0)).flatten(1))
    torch.testing.assert_close(
        analytic_ntk(zeros, (x, a)), analytic_ntk(masked, (x, a)), rtol=1e-14, atol=0
    )


def test_what_a_batch_must_be() -> None:
    x, a = torch.randn(2, 6, 3, dtype=torch.float64), A6
    net = Written(lambda h, a: a @ h)
    with pytest.raises(TypeError, match=r"the argument 'a' besides.*as a tuple"):
        analytic_ntk(net, x)
    with pytest.raises(TypeError, match=r"a forward\(x, a\) for a batch with argument 3"):
        analytic_ntk(net, (x, a, a))
    with pytest.raises(TypeError, match="for a batch with b"):
        analytic_ntk(net, {"x": x, "a": a, "b": a})
    with pytest.raises(ValueError, match=r"`x2` must be.*as `x1`"):
        analytic_ntk(net, (x, a), (x, A3))
    with pytest.raises(ValueError, match="same number of samples"):
        analytic_ntk(net, (x, a[:1]))
    with pytest.raises(ValueError, match=r"x1\[1\].*NaN"):
        analytic_ntk(net, (x, a * float("nan")))
