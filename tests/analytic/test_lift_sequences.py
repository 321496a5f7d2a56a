"""Attention and recurrent networks against recursions written out over every pair of positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from covariance_oracle import dual
from small_nets import dense
from test_finite_networks import deviation, with_outputs
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from torch_ntk import NTKRNN, Erf, NTKSelfAttention, analytic_kernels, analytic_ntk
from torch_ntk.sampling import monte_carlo_kernel

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
SIGMAS = {"sigma_query": 1.2, "sigma_key": 0.9, "sigma_value": 1.3, "sigma_out": 1.1}
LENGTH = 4
Both = tuple[Tensor, Tensor]
PHI = {"relu": nn.ReLU(), "erf": Erf(), "tanh": nn.Tanh()}


class Attending(nn.Module):
    """Embedded tokens with encodings of positions, attention, ReLU, a mean and a readout."""

    def __init__(self, n: int, heads: int = 1, of: str = "encoded", **options: Any) -> None:
        super().__init__()
        self.embed = dense(3, n, 1.1, 0.2)
        features = 3 if of == "inputs" else n
        options = {"num_heads": heads, **SIGMAS, **options, **DOUBLE}
        self.attention = NTKSelfAttention(features, n, **options)
        self.readout = dense(n, n, 1.0, 0.0)
        generator = torch.Generator().manual_seed(3)
        # Of one covariance for all widths.
        encodings = torch.randn(1, LENGTH, 4, generator=generator, **DOUBLE)
        self.register_buffer("encodings", encodings.repeat(1, 1, n // 4))
        self.of = of

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.of == "encoded":
            looked = self.attention(self.embed(x) + self.encodings)
        else:
            looked = self.attention(x if self.of == "inputs" else torch.relu(self.embed(x)), mask)
        return self.readout(torch.relu(looked).mean(1))


class Recurring(nn.Module):
    """An embedding, a recurrent layer, and a readout of its last or of all its outputs."""

    def __init__(self, n: int, last: bool = True, **options: Any) -> None:
        super().__init__()
        self.embed = dense(3, n, 1.1, 0.2)
        scales = {"sigma_w": 1.3, "sigma_u": 0.8, "sigma_b": 0.5}
        self.rnn = NTKRNN(n, n, batch_first=True, **scales, **options, **DOUBLE)
        self.last = last
        self.readout = dense(n * (1 + self.rnn.bidirectional), n, 1.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        outputs, ends = self.rnn(torch.relu(self.embed(x)))
        return self.readout(ends[-1] if self.last else outputs.mean(1))


def sequences(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, LENGTH, 3, generator=generator, **DOUBLE)


# -- the recursions, for all positions of all samples at once: K and Θ [N, T, N, T] ---------------


def embedded(x: Tensor) -> Both:
    k = torch.einsum("nsc,mtc->nsmt", x, x) / 3 * 1.1**2 + 0.2**2
    return k, k.clone()


def through(phi: nn.Module, k: Tensor, t: Tensor) -> Both:
    n, s = k.shape[:2]
    flat = k.reshape(n * s, n * s)
    q = flat.diagonal()
    kappa, slope = dual(phi, flat, q[:, None], q[None])
    return kappa.view_as(k), slope.view_as(k) * t


def attended(layer: NTKSelfAttention, k: Tensor, t: Tensor, keep: Tensor) -> Both:
    """`keep` `[N, T]` is 1 where a position is looked at."""
    n = len(k)
    a = (SIGMAS["sigma_value"] * SIGMAS["sigma_out"]) ** 2
    g = SIGMAS["sigma_query"] * SIGMAS["sigma_key"]
    b = 0.0 if layer.bias is None else layer.sigma_b**2
    k_out, t_out = torch.zeros_like(k), torch.zeros_like(t)
    for i in range(n):
        for j in range(n):
            if layer.scaling == "sqrt":
                seen = keep[i, :, None] * keep[j, None]
                kk, kt = ((k[i, :, j] * seen * other[i, :, j]).sum() for other in (k, t))
                found = a * g**2 * k[i, :, j] * kk
                k_out[i, :, j] = found
                t_out[i, :, j] = a * g**2 * (t[i, :, j] * kk + 2 * k[i, :, j] * kt) + 4 * found
                continue
            one, two = (weights(layer.attention, g * k[m, :, m], keep[m]) for m in (i, j))
            k_out[i, :, j] = a * one @ k[i, :, j] @ two.T
            t_out[i, :, j] = a * one @ t[i, :, j] @ two.T + 2 * k_out[i, :, j]
    return k_out + b, t_out + b


def weights(attention: str, products: Tensor, keep: Tensor) -> Tensor:
    if attention == "softmax":
        powers = products.exp() * keep
        return powers / powers.sum(1, keepdim=True)
    values = {"identity": products, "relu": products.clamp(min=0), "abs": products.abs()}
    return values[attention] * keep


def recurred(phi: nn.Module, k: Tensor, t: Tensor, backwards: bool = False) -> Both:
    """`h_t` at all times: each pair of times from the pair one step before."""
    if backwards:
        back = recurred(phi, *(a.flip(1).flip(3) for a in (k, t)))
        return back[0].flip(1).flip(3), back[1].flip(1).flip(3)
    known: dict[tuple[int, int], Both] = {}

    def at(s: int, r: int) -> Both:
        if (s, r) not in known:
            z = 0.8**2 * k[:, s, :, r] + 0.5**2
            theta = 0.8**2 * (t + k)[:, s, :, r] + 0.5**2
            if s > 0 and r > 0:
                before = at(s - 1, r - 1)
                q1, q2 = (at(i, i)[0].diagonal() for i in (s - 1, r - 1))
                kappa, slope = dual(phi, before[0], q1[:, None], q2[None])
                z = z + 1.3**2 * kappa
                theta = theta + 1.3**2 * (slope * before[1] + kappa)
            known[s, r] = z, theta
        return known[s, r]

    z, theta = torch.empty_like(k), torch.empty_like(t)
    for s in range(k.shape[1]):
        for r in range(k.shape[1]):
            z[:, s, :, r], theta[:, s, :, r] = at(s, r)
    return through(phi, z, theta)


def averaged(k: Tensor, t: Tensor) -> Both:
    return k.mean((1, 3)), t.mean((1, 3))


def read_out(k: Tensor, t: Tensor, shift: float) -> Both:
    return k + shift, t + k + shift


def check(got: Any, wanted: Both, rows: int, tolerance: float = 1e-10) -> None:
    """Both kernels between the first samples and the others, within a relative tolerance."""
    for mine, whole in zip(got, wanted, strict=True):
        theirs = whole[:rows, rows:]
        assert float((mine - theirs).abs().max() / theirs.abs().max()) < tolerance


# -- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "sigma_b": 0.4},
        {"attention": "relu"},
        {"attention": "abs"},
        {"attention": "identity"},
        {"attention": "identity", "scaling": "sqrt", "bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("of", ["encoded", "masked", "inputs"])
def test_attention(options: dict[str, Any], of: str) -> None:
    net = Attending(4, of=of, head_dim=5 if of == "inputs" else None, **options)
    x1, x2 = sequences(3), sequences(2, 1)
    x = torch.cat([x1, x2])
    keep = torch.ones(5, LENGTH, **DOUBLE)
    k, t = embedded(x)
    if of != "encoded":
        keep[1, 2:] = keep[3, 0] = 0
        k, t = through(nn.ReLU(), k, t)
        mask = keep == 0
        batches: Any = (x1, mask[:3]), (x2, mask[3:])
        if of == "inputs":
            k = torch.einsum("nsc,mtc->nsmt", x, x) / 3
            t = torch.zeros_like(k)
    else:
        p = net.encodings[0]
        k = k + (p @ p.T / 4)[None, :, None]
        batches = x1, x2
    k, t = through(nn.ReLU(), *attended(net.attention, k, t, keep))
    wanted = read_out(*averaged(k, t), 0.0)
    check(analytic_kernels(net, *batches), wanted, 3)
    one = analytic_kernels(net, batches[0])
    for mine, whole in zip(one, wanted, strict=True):
        torch.testing.assert_close(mine, whole[:3, :3], rtol=1e-7, atol=0)
        assert torch.equal(mine, mine.T)


def test_frozen_weights_of_attention_are_left_out() -> None:
    x = sequences(3)
    for scaling, count in (("linear", 2), ("sqrt", 4)):
        net = nn.Sequential(
            dense(3, 4),
            NTKSelfAttention(4, 2, attention="identity", scaling=scaling, **SIGMAS, **DOUBLE),
        )
        net[0].requires_grad_(False)
        whole = analytic_kernels(net, x)
        torch.testing.assert_close(whole.ntk, count * whole.nngp, rtol=1e-12, atol=0)
        net[1].value_weight.requires_grad_(False)
        less = analytic_ntk(net, x)
        torch.testing.assert_close(less, (count - 1) * whole.nngp, rtol=1e-12, atol=0)


def finite(build: Callable[[int], nn.Module], width: int, draws: int, batches: Any) -> None:
    """The lifted kernels are the means over finite networks, and no others near them are."""
    limit = analytic_kernels(build(8), *batches)
    for kind in ("nngp", "ntk"):
        # The covariance has little noise with many outputs; the tangent kernel with few.
        sampled = monte_carlo_kernel(
            lambda kind=kind: with_outputs(build(width), None if kind == "nngp" else 4),
            *batches,
            n_samples=draws,
            kind=kind,
            seed=0,
        )
        wanted = getattr(limit, kind)
        assert deviation(sampled, wanted, width) < 3, kind
        assert deviation(sampled, 1.3 * wanted, width) > 3, kind


def tied(n: int) -> nn.Module:
    return Attending(n, 2)


def many_heads(n: int) -> nn.Module:
    return Attending(n, n // 4, attention="identity", scaling="sqrt")


def of_inputs(n: int) -> nn.Module:
    return Attending(n, 2, "inputs", head_dim=n)


def many_heads_of_inputs(n: int) -> nn.Module:
    options = {"head_dim": 4, "attention": "identity", "scaling": "sqrt"}
    return Attending(n, n // 2, "inputs", **options)


@pytest.mark.parametrize("build", [many_heads, many_heads_of_inputs])
def test_finite_attention_of_many_heads(build: Callable[[int], nn.Module]) -> None:
    """For other kinds the table of slopes is sharp enough."""
    finite(build, 128, 60, (sequences(2), sequences(2, 1)))


# -- recurrent networks -------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("phi", PHI)
def test_one_recurrent_layer(phi: Any, last: bool) -> None:
    net = Recurring(4, last, nonlinearity=phi)
    x1, x2 = sequences(3), sequences(2, 1)
    k, t = recurred(PHI[phi], *through(nn.ReLU(), *embedded(torch.cat([x1, x2]))))
    k, t = (k[:, -1, :, -1], t[:, -1, :, -1]) if last else averaged(k, t)
    wanted = read_out(k, t, 0.1**2)
    check(analytic_kernels(net, x1, x2), wanted, 3, 1e-6 if phi == "tanh" else 1e-10)
    x = torch.cat([x1, x1[:1], x2])
    rows = [0, 1, 2, 0, 3, 4]
    for mine, whole in zip(analytic_kernels(net, x), wanted, strict=True):
        torch.testing.assert_close(mine, whole[rows][:, rows], rtol=2e-7, atol=0)
        # Copies of a sample have exactly the kernel of the sample with itself.
        assert mine[0, 3] == mine[0, 0] == mine[3, 3]


def test_layers_in_both_directions() -> None:
    net = Recurring(4, last=False, nonlinearity="erf", num_layers=2, bidirectional=True)
    x1, x2 = sequences(3), sequences(2, 1)
    k, t = through(nn.ReLU(), *embedded(torch.cat([x1, x2])))
    for _ in range(2):
        both = recurred(Erf(), k, t), recurred(Erf(), k, t, backwards=True)
        k, t = ((a + b) / 2 for a, b in zip(*both, strict=True))
    check(analytic_kernels(net, x1, x2), read_out(*averaged(k, t), 0.1**2), 3)
    ends = analytic_kernels(Ends(net), x1, x2)
    k, t = both[1]  # of the last layer backwards: its last state is that of the first time
    check(ends, read_out(k[:, 0, :, 0], t[:, 0, :, 0], 0.1**2), 3)


class Ends(nn.Module):
    """The last hidden state of the last layer and direction, and a readout."""

    def __init__(self, net: Recurring) -> None:
        super().__init__()
        self.net = net
        self.readout = dense(4, 4, 1.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        _, ends = self.net.rnn(torch.relu(self.net.embed(x)))
        return self.readout(ends[-1])


def test_the_last_state_of_finite_recurrent_networks() -> None:
    """All of their states are in the table of slopes."""
    batches = sequences(2), sequences(2, 1)
    finite(lambda n: Recurring(n, True, nonlinearity="relu"), 128, 30, batches)


@pytest.mark.parametrize(
    "net",
    [
        Attending(4),
        Attending(4, attention="identity", scaling="sqrt"),
        Recurring(4, nonlinearity="erf"),
        Recurring(4, last=False, nonlinearity="relu", bidirectional=True),
    ],
    ids=["softmax", "many heads", "last", "both ways"],
)
def test_derivatives_by_the_inputs(net: nn.Module) -> None:
    x1, x2 = sequences(2).requires_grad_(), sequences(1, 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: analytic_ntk(net, a, b), (x1, x2), fast_mode=True, atol=1e-6
    )
    assert torch.autograd.gradcheck(
        lambda a: analytic_ntk(net, a).sum(), (x1,), fast_mode=True, atol=1e-6
    )


def after_embedding(layer: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> nn.Module:
    """`layer` on embedded tokens, called by a function of the test's."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = dense(3, 4)
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = call(self.layer, self.embed(x))
            return found

    return Net()


def attention(**options: Any) -> nn.Module:
    return NTKSelfAttention(4, 4, **options, **DOUBLE)


LONG = torch.zeros(1, LENGTH + 1, dtype=torch.bool)
REFUSED: dict[str, tuple[nn.Module, str]] = {
    "softmax of independent keys and queries": (
        after_embedding(attention(scaling="sqrt"), lambda m, h: m(h)),
        r"scaling='sqrt' and attention='softmax' at 'layer'.*stay random.*scaling='linear'",
    ),
    "inputs": (
        nn.Sequential(NTKSelfAttention(3, 4, **DOUBLE)),
        r"on the inputs .* at '0'.*do not grow.*head_dim=.*NTKLinear",
    ),
    "two axes of positions": (
        after_embedding(attention(), lambda m, h: m(h.unflatten(1, (2, 2)))),
        r"on samples of shape \(2, 2, 4\) at 'layer'.*needs \[N, T, C\].*transpose",
    ),
    "channels first": (
        after_embedding(attention(), lambda m, h: m(h.transpose(1, 2))),
        r"needs \[N, T, C\]: one axis",
    ),
    "features": (after_embedding(NTKSelfAttention(6, 4, **DOUBLE), lambda m, h: m(h)), "takes 6"),
    "mask": (
        after_embedding(attention(), lambda m, h: m(h, LONG)),
        r"mask of shape \(1, 5\).*It must be \[N, 4\]",
    ),
    "empty mask": (
        after_embedding(attention(), lambda m, h: m(h, ~LONG[:, 1:])),
        "a mask of all positions.*could get attention",
    ),
    "called twice": (after_embedding(attention(), lambda m, h: m(m(h))), "second use"),
    "times first": (
        after_embedding(NTKRNN(4, 4, **DOUBLE), lambda m, h: m(h)[0]),
        r"NTKRNN\(4, 4, …\) at 'layer'.*batch_first=True",
    ),
    "hidden states": (
        after_embedding(
            NTKRNN(4, 4, batch_first=True, **DOUBLE), lambda m, h: m(h, torch.ones(1, 2, 4))[0]
        ),
        "given hidden states.*Omit them",
    ),
    "ordinary": (
        after_embedding(nn.RNN(4, 4, batch_first=True, **DOUBLE), lambda m, h: m(h)[0]),
        r"nn\.RNN at 'layer'.*ntk_parameterize",
    ),
    "gates": (
        after_embedding(nn.LSTM(4, 4, batch_first=True, **DOUBLE), lambda m, h: m(h)[0]),
        r"nn\.LSTM at 'layer'.*NTKRNN",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    net, words = REFUSED[name]
    with pytest.raises(ValueError, match=rf"(?s)`model` must be.*{words}"):
        analytic_ntk(net, sequences(2))


class Lengths(Recurring):
    """Sequences of several lengths, packed, and the last state of each."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x).relu(), lengths, True, enforce_sorted=False)
        return self.readout(self.rnn(packed)[1][-1])


class EndsOfPadded(Recurring):
    """The same, as it is read."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        ends = torch.arange(LENGTH) == lengths[:, None] - 1
        outputs, _ = self.rnn(self.embed(x).relu())
        return self.readout((outputs * ends[..., None]).sum(1))


def test_packed_sequences_are_read_padded() -> None:
    batches = (sequences(2), torch.tensor([2, 4])), (sequences(2, 1), torch.tensor([3, 1]))
    finite(lambda n: (EndsOfPadded if n == 8 else Lengths)(n, nonlinearity="erf"), 256, 30, batches)
    with pytest.raises(
        TypeError, match=r"(?s)of padded sequences; got a Lengths.*mask \[N, T, 1\]"
    ):
        analytic_ntk(Lengths(4), batches[0])


class Block(nn.Module):
    """A block of a transformer, with encodings `[T, C]`, attention, two norms and two layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.beside, self.attention = dense(3, n), dense(n, n), Attending(n).attention
        self.register_buffer("encodings", Attending(n).encodings[0])
        self.norms = nn.ModuleList(nn.LayerNorm(n, elementwise_affine=False) for _ in range(2))
        self.up, self.down, self.out = dense(n, 2 * n), dense(2 * n, n), dense(n, n)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.encodings
        h = self.norms[0](self.beside(h) + self.attention(h))
        h = self.norms[1](h + self.down(torch.relu(self.up(h))))
        return self.out(h[:, 0])
