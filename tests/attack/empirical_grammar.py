"""The grammar of the random networks whose kernels are compared with a plain loop.

A network is a chain of operations from the tables below, on rows `[D]`, sequences `[T, D]`,
images `[C, H, W]` or tokens `[T]` of each sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from attack.empirical_builder import Builder, Chain, Make, Shape, Step, Table
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is deprecated

    @torch.jit.script
    def scripted(x: Tensor, w: Tensor) -> Tensor:
        return torch.sin(x @ w.t())


class OldProduct(torch.autograd.Function):
    """`x wᵀ` by a function of the old kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).t() @ x.flatten(0, -2)


class NewProduct(torch.autograd.Function):
    """`x wᵀ` by a function that torch.func can transform."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x @ w.t()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).t() @ x.flatten(0, -2)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None) -> Tensor:
        x, w = ctx.saved_tensors
        zero = x.new_zeros(())
        return (zero if dx is None else dx @ w.t()) + (zero if dw is None else x @ dw.t())


class Again(torch.autograd.Function):
    """A block that is run again for its gradients, with the parameters that are in place."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x, *params)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, *params = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.block(x)
            return (None, *torch.autograd.grad(y, (x, *params), g, allow_unused=True))


# ---------------------------------------------------------------- kinds of rows in the tables
def product(f: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """`f(x, w)` with a weight `[out, in]` on the last axis."""

    def make(b: Builder, s: Shape) -> tuple[Step, Shape]:
        o = b.width()
        w = b.weight(o, s[-1])
        return (lambda net, x: f(x, w(net))), (*s[:-1], o)

    return make


def scaled(f: Callable[[Tensor, Tensor], Tensor], axis: int = -1) -> Make:
    """`f(x, w)` with a weight as long as one axis, shaped to fit."""

    def make(b: Builder, s: Shape) -> tuple[Step, Shape]:
        w = b.weight(s[axis])
        fit = [-1 if i == axis % len(s) else 1 for i in range(len(s))]
        return (lambda net, x: f(x, w(net).reshape(fit))), s

    return make


def plain(f: Callable[[Tensor], Tensor], change: Callable[[Shape], Shape] = lambda s: s) -> Make:
    """`f(x)` without parameters."""
    return lambda b, s: ((lambda net, x: f(x)), change(s))


def layer(make: Callable[[Shape, Builder], nn.Module], out: bool = False) -> Make:
    """A module of torch; `out` if it changes the shape, which is then tried out."""

    def made(b: Builder, s: Shape) -> tuple[Step, Shape]:
        module = make(s, b)
        for p in module.parameters():  # norms start at 1 and 0, which would hide mistakes
            p.data.add_(0.3 * torch.randn_like(p))
        if not out:
            return b.module(module), s
        training = module.training
        with torch.no_grad():
            shape = tuple(module.eval()(torch.zeros(1, *s)).shape[1:])
        module.train(training)
        return b.module(module), shape

    return made


def first_of(make: Callable[[Shape, Builder], nn.Module], width: int) -> Make:
    """The outputs of a recurrent network."""

    def made(b: Builder, s: Shape) -> tuple[Step, Shape]:
        f = b.module(make(s, b))
        return (lambda net, x: f(net, x)[0]), (s[0], width)

    return made


def _attention(b: Builder, s: Shape) -> tuple[Step, Shape]:
    q, k, v = (b.weight(4, s[-1]) for _ in range(3))

    def f(net: nn.Module, x: Tensor) -> Tensor:
        parts = (x @ w(net).t() for w in (q, k, v))
        return F.scaled_dot_product_attention(*parts)

    return f, (s[0], 4)


def _multihead(b: Builder, s: Shape) -> tuple[Step, Shape]:
    name = b.name("m")
    setattr(b.net, name, nn.MultiheadAttention(s[-1], 1, batch_first=True))
    return (lambda net, x: getattr(net, name)(x, x, x)[0]), s


def _bilinear(b: Builder, s: Shape) -> tuple[Step, Shape]:
    w = b.weight(3, s[0], s[0])
    return (lambda net, x: F.bilinear(x, torch.sin(x), w(net))), (3,)


def _half_scripted(b: Builder, s: Shape) -> tuple[Step, Shape]:
    """A weight in `F.linear` and, behind a gate, where no operation can be watched."""
    w, gate = b.weight(4, s[-1]), b.fresh(1)

    def f(net: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, w(net))) + gate(net) * scripted(x, w(net))

    return f, (*s[:-1], 4)


def _positions(b: Builder, s: Shape) -> tuple[Step, Shape]:
    w = b.weight(*s)
    return (lambda net, x: x + w(net)), s


def _mixed(b: Builder, s: Shape) -> tuple[Step, Shape]:
    w = b.weight(s[0], s[0])
    return (lambda net, x: w(net) @ x), s


def _batched(b: Builder, s: Shape) -> tuple[Step, Shape]:
    w = b.weight(s[-1], 4)
    return (lambda net, x: torch.bmm(x, w(net).expand(len(x), -1, -1))), (s[0], 4)


def _conv(b: Builder, s: Shape) -> tuple[Step, Shape]:
    """`F.conv2d` or `F.conv1d` with a weight of the builder's and random options."""
    c, d = s[0], len(s) - 1
    options: dict[str, Any] = b.draw.choice(
        [{}, {"stride": 2}, {"padding": 1}, {"padding": "same"}, {"dilation": 2, "padding": 2}]
    )
    o, f = 2 * c, (F.conv1d, F.conv2d)[d - 1]
    groups = c if b.draw.random() < 0.3 else 1
    w = b.weight(o, c // groups, *[b.draw.choice([1, 2, 3]) for _ in range(d)])
    bias = b.weight(o) if b.draw.random() < 0.5 else None

    def step(net: nn.Module, x: Tensor) -> Tensor:
        return f(x, w(net), None if bias is None else bias(net), groups=groups, **options)

    with torch.no_grad():
        return step, tuple(step(b.net, torch.zeros(1, *s)).shape[1:])


def _shape_of_conv(s: Shape, b: Builder) -> nn.Module:
    mode = b.draw.choice(["zeros", "circular", "reflect", "replicate"])
    return nn.Conv2d(s[0], 3, 3, padding=1, padding_mode=mode, stride=b.draw.choice([1, 2]))


def _coupled(b: Builder, s: Shape) -> tuple[Step, Shape]:
    """Samples that see each other once a buffer is switched on."""
    b.couples = True
    return (lambda net, x: x + net.gate * (x - x.mean(0)).square()), s


def _again(b: Builder, s: Shape) -> tuple[Step, Shape]:
    name = b.name("m")
    setattr(b.net, name, nn.Sequential(nn.Linear(s[-1], s[-1]), nn.Tanh()))

    def f(net: nn.Module, x: Tensor) -> Tensor:
        block = getattr(net, name)
        return Again.apply(block, x, *(p for p in block.parameters() if p.requires_grad))

    return f, s


def _autocast(b: Builder, s: Shape) -> tuple[Step, Shape]:
    w, on = b.weight(4, s[-1]), not b.plain

    def f(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            return (x @ w(net).t()).to(x.dtype)

    return f, (*s[:-1], 4)


def wrapped(kind: str) -> Make:
    """Another operation inside of something."""

    def make(b: Builder, s: Shape) -> tuple[Step, Shape]:
        f, shape = b.step(s, preserve=kind in ("residual", "twice"))
        if kind == "residual":
            return (lambda net, x: x + f(net, x)), shape
        if kind == "twice":
            return (lambda net, x: f(net, torch.tanh(f(net, x)))), shape
        if kind == "under a hook" or b.plain:
            return f, shape
        reentrant = kind == "reentrant checkpoint"
        return (lambda net, x: checkpoint(lambda v: f(net, v), x, use_reentrant=reentrant)), shape

    return make


def _compiled(b: Builder, s: Shape) -> tuple[Step, Shape]:
    part = nn.Sequential(nn.Linear(s[-1], s[-1]), nn.Tanh())
    return b.module(part if b.plain else torch.compile(part, backend="eager")), s


def _normed(s: Shape, kind: Callable[..., nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return kind(nn.Linear(s[-1], s[-1]))


def _in_place(x: Tensor, w: Tensor) -> Tensor:
    h = x.clone()
    h.mul_(w).add_(1.0)
    h[..., 0] = h[..., 1] * 2
    return h


# ---------------------------------------------------------------- the grammar
ANY: Table = {
    "F.linear": product(F.linear),
    "x @ w.T": product(lambda x, w: x @ w.t()),
    "matmul": product(lambda x, w: torch.matmul(x, w.transpose(0, 1))),
    "einsum": product(lambda x, w: torch.einsum("...d,od->...o", x, w)),
    "tensordot": product(lambda x, w: torch.tensordot(x, w, dims=([-1], [1]))),
    "sum of products": product(lambda x, w: (x.unsqueeze(-2) * w).sum(-1)),
    "w @ x.T": product(lambda x, w: (w @ x.transpose(-1, -2)).transpose(-1, -2)),
    "scripted": product(scripted),
    "half scripted": _half_scripted,
    "old function": product(OldProduct.apply),
    "new function": product(NewProduct.apply),
    "linear and gate": product(lambda x, w: F.linear(x, w) * torch.sigmoid(x @ w.t())),
    "nn.Linear": layer(lambda s, b: nn.Linear(s[-1], b.width()), out=True),
    "LayerNorm": layer(lambda s, b: nn.LayerNorm(s[-1])),
    "RMSNorm": layer(lambda s, b: nn.RMSNorm(s[-1], eps=1e-5)),
    "Dropout": layer(lambda s, b: nn.Dropout(0.5)),
    "PReLU()": layer(lambda s, b: nn.PReLU()),
    "weight_norm": layer(lambda s, b: _normed(s, nn.utils.weight_norm)),
    "parametrized weight_norm": layer(lambda s, b: _normed(s, parametrizations.weight_norm)),
    "spectral_norm": layer(lambda s, b: _normed(s, parametrizations.spectral_norm)),
    "x * w": scaled(lambda x, w: x * w),
    "x + w": scaled(lambda x, w: x + w),
    "w - x": scaled(lambda x, w: w - x),
    "x / exp(w)": scaled(lambda x, w: x / w.exp()),
    "addcmul": scaled(lambda x, w: torch.addcmul(x, x.sin(), w, value=0.5)),
    "lerp": scaled(lambda x, w: torch.lerp(x, x.cos(), w)),
    "where": scaled(lambda x, w: torch.where(x > 0, x, w * x)),
    "in place": scaled(_in_place),
    "cat": scaled(lambda x, w: torch.cat([x[..., :1], (x * w)[..., 1:]], dim=-1)),
    "stack": scaled(lambda x, w: torch.stack([x, x * w, w.expand_as(x)]).sum(0)),
    "tanh": plain(torch.tanh),
    "GELU": plain(F.gelu),
    "SiLU": plain(F.silu),
    "ReLU in place": plain(lambda x: F.relu(x.clone(), inplace=True)),
    "softplus": plain(F.softplus),
    "softmax": plain(lambda x: x.softmax(-1)),
    "flip": plain(lambda x: x.flip(-1)),
    "cumsum": plain(lambda x: x.cumsum(-1)),
    "roll and view": plain(lambda x: x.roll(1, -1).reshape(len(x), -1).view(x.shape)),
    "stop gradient": plain(lambda x: x + x.detach().square()),
    "coupled": _coupled,
    "residual": wrapped("residual"),
    "twice": wrapped("twice"),
    "checkpoint": wrapped("checkpoint"),
    "reentrant checkpoint": wrapped("reentrant checkpoint"),
}
ROWS: Table = {
    **ANY,
    "addmm": product(lambda x, w: torch.addmm(x.new_ones(len(w)), x, w.t(), beta=0.5, alpha=2)),
    "mm": product(lambda x, w: x.mm(w.t())),
    "F.bilinear": _bilinear,
    "nn.Bilinear": layer(lambda s, b: _Square(nn.Bilinear(s[0], s[0], 3)), out=True),
    "BatchNorm1d": layer(lambda s, b: nn.BatchNorm1d(s[0])),
    "PReLU(D)": layer(lambda s, b: nn.PReLU(s[0])),
    "F.prelu": scaled(lambda x, w: F.prelu(x, w.reshape(-1))),
    "GLU": plain(lambda x: F.glu(torch.cat([x, x.sin()], -1), -1)),
    "recomputing": _again,
    "autocast": _autocast,
    "compiled": _compiled,
    "index": plain(lambda x: x[:, [0, 1, 1, -1]], lambda s: (4,)),
    "to sequence": plain(lambda x: torch.stack([x, x.sin(), x.cos()], 1), lambda s: (3, s[0])),
    "to image": plain(
        lambda x: (x[:, None, :, None] * torch.ones_like(x)[:, None, None, :4]).repeat(1, 2, 1, 1),
        lambda s: (2, s[0], min(4, s[0])),
    ),
}
SEQUENCES: Table = {
    **ANY,
    "attention": _attention,
    "MultiheadAttention": _multihead,
    "TransformerEncoderLayer": layer(
        lambda s, b: nn.TransformerEncoderLayer(s[-1], 1, 5, batch_first=True)
    ),
    "RNN": first_of(lambda s, b: nn.RNN(s[-1], 3, batch_first=True), 3),
    "GRU": first_of(lambda s, b: nn.GRU(s[-1], 3, batch_first=True), 3),
    "LSTM": first_of(lambda s, b: nn.LSTM(s[-1], 3, batch_first=True), 3),
    "positions": _positions,
    "mixed positions": _mixed,
    "bmm": _batched,
    "F.conv1d": _conv,
    "ConvTranspose1d": layer(lambda s, b: nn.ConvTranspose1d(s[0], 3, 2), out=True),
    "InstanceNorm1d": layer(lambda s, b: nn.InstanceNorm1d(s[0], affine=True)),
    "scale of a position": scaled(lambda x, w: x * w, axis=0),
    "transpose": plain(lambda x: x.transpose(1, 2), lambda s: s[::-1]),
    "sum over positions": plain(lambda x: x.sum(1), lambda s: s[1:]),
    "last position": plain(lambda x: x[:, -1], lambda s: s[1:]),
    "max over positions": plain(lambda x: x.max(1).values, lambda s: s[1:]),
}
IMAGES: Table = {
    "F.conv2d": _conv,
    "Conv2d": layer(_shape_of_conv, out=True),
    "depthwise": layer(lambda s, b: nn.Conv2d(s[0], s[0], 3, padding=1, groups=s[0]), out=True),
    "ConvTranspose2d": layer(lambda s, b: nn.ConvTranspose2d(s[0], 2, 2, stride=2), out=True),
    "Conv3d": layer(lambda s, b: _Unsqueezed(nn.Conv3d(1, 1, (s[0], 2, 2))), out=True),
    "BatchNorm2d": layer(lambda s, b: nn.BatchNorm2d(s[0])),
    "GroupNorm": layer(lambda s, b: nn.GroupNorm(1, s[0])),
    "InstanceNorm2d": layer(lambda s, b: nn.InstanceNorm2d(s[0], affine=True)),
    "PReLU(C)": layer(lambda s, b: nn.PReLU(s[0])),
    "channel scale": scaled(lambda x, w: x * w, axis=0),
    "channel shift": scaled(lambda x, w: x + w, axis=0),
    "column scale": scaled(lambda x, w: x * w, axis=-1),
    "avg_pool2d": plain(lambda x: F.avg_pool2d(x, 2, 1), lambda s: (s[0], s[1] - 1, s[2] - 1)),
    "max_pool2d": plain(lambda x: F.max_pool2d(x, 2, 1), lambda s: (s[0], s[1] - 1, s[2] - 1)),
    "ReLU": plain(F.relu),
    "SiLU": plain(F.silu),
    "interpolate": plain(
        lambda x: F.interpolate(x, size=(4, 4), mode="nearest"), lambda s: (s[0], 4, 4)
    ),
    "pad": plain(lambda x: F.pad(x, (1, 1, 0, 1)), lambda s: (s[0], s[1] + 1, s[2] + 2)),
    "residual": wrapped("residual"),
    "checkpoint": wrapped("checkpoint"),
    "to sequence": plain(lambda x: x.flatten(2).transpose(1, 2), lambda s: (s[1] * s[2], s[0])),
    "coupled": _coupled,
}
TABLES: dict[int, Table] = {1: ROWS, 2: SEQUENCES, 3: IMAGES}
TO_ROWS: Table = {
    "flatten": plain(lambda x: x.flatten(1), lambda s: (torch.Size(s).numel(),)),
    "mean": plain(lambda x: x.flatten(2).mean(2), lambda s: s[:1]),
    "sum": plain(lambda x: x.flatten(1, -2).sum(1), lambda s: s[-1:]),
}
VOCABULARY = 6
EMBEDDINGS: dict[str, Callable[[], nn.Module]] = {
    "Embedding": lambda: nn.Embedding(VOCABULARY, 4),
    "Embedding(padding_idx)": lambda: nn.Embedding(VOCABULARY, 4, padding_idx=0),
    "Embedding(sparse)": lambda: nn.Embedding(VOCABULARY, 4, sparse=True),
    "EmbeddingBag": lambda: nn.EmbeddingBag(VOCABULARY, 4, mode="sum"),
}


class _Square(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x)


class _Unsqueezed(_Square):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unsqueeze(1)).squeeze(1)


def _first(b: Builder) -> tuple[Step | None, Shape]:
    """How inputs come in: as they are, or tokens through an embedding or a table of weights."""
    kind = b.draw.choice(["row", "row", "sequence", "image", "tokens"])
    if kind != "tokens":
        return None, {"row": (4,), "sequence": (3, 4), "image": (2, 4, 4)}[kind]
    name = b.draw.choice([*EMBEDDINGS, "F.embedding", "one-hot"])
    b.net.words.append(name)
    if name in EMBEDDINGS:
        module = EMBEDDINGS[name]()
        nn.init.normal_(module.weight)
        return b.module(module), (4,) if name == "EmbeddingBag" else (3, 4)
    w = b.weight(VOCABULARY, 4)
    padding = b.draw.choice([None, 0])
    if name == "F.embedding":
        return (lambda net, x: F.embedding(x, w(net), padding_idx=padding)), (3, 4)
    return (lambda net, x: F.one_hot(x, VOCABULARY).to(w(net).dtype) @ w(net)), (3, 4)


def built(seed: int, plain: bool) -> tuple[Chain, Shape, bool]:
    """The network of a seed in float64, the shape of its samples, and whether it may couple.

    Chains that torch itself cannot evaluate are passed over.
    """
    while True:
        net, takes, couples = _drawn(seed, plain=True)
        x = torch.zeros(1, *takes) if takes[0] > 0 else torch.zeros(1, -takes[0], dtype=torch.int)
        try:
            with torch.no_grad():
                net.eval()(x.double() if takes[0] > 0 else x)
        except (RuntimeError, ValueError, IndexError):
            seed += 10**7
            continue
        return (net.train(), takes, couples) if plain else _drawn(seed, plain)


def _drawn(seed: int, plain: bool) -> tuple[Chain, Shape, bool]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        b = Builder(seed, plain, TABLES, TO_ROWS)
        first, shape = _first(b)
        takes = (-3,) if first is not None else shape
        try:
            net = b.build(first, shape).double()
        except (RuntimeError, ValueError):
            return _drawn(seed + 10**7, plain)
        for buffer in net.buffers():
            if buffer.is_floating_point() and buffer.ndim:  # statistics other than 0 and 1
                buffer.add_(0.2 * torch.rand_like(buffer))
        for p in net.parameters():
            if b.draw.random() < 0.08 and b.count > 1:
                p.requires_grad_(False)
    return net, takes, b.couples
