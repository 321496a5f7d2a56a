"""Every rule alone: what it covers, that it is right, and what it leaves to Jacobians."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import ntk_loop, reduced, relative_error
from plans import covered, plan_of
from test_structured_contractions import forced
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk.empirical.structured import _plan


class Weighted(nn.Module):
    """A function of the input and of parameters with the given shapes."""

    def __init__(self, function, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.ParameterList([nn.Parameter(torch.randn(s).double()) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.function(x, *self.w))


def check(model: nn.Module, x: Tensor, names: set[str], monkeypatch) -> None:
    """The rules cover exactly `names`, and every order of contraction is right."""
    model = model.double()
    assert covered(model, x) == names
    expected = ntk_loop(model, x, x)
    assert relative_error(empirical_ntk(model, x, method="structured"), expected) < 1e-12
    for contraction in ("gram", "features", "jacobian"):
        monkeypatch.setattr(_plan, "cheapest", forced(contraction))
        kernel = empirical_ntk(model, x, method="structured")
        assert relative_error(kernel, expected) < 1e-12
    monkeypatch.undo()


TRANSPOSED = {
    "plain": (nn.ConvTranspose1d(2, 3, 3), (2, 5)),
    "stride": (nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), (2, 5)),
    "output_padding": (nn.ConvTranspose1d(2, 3, 3, stride=3, output_padding=2), (2, 4)),
    "dilation": (nn.ConvTranspose1d(2, 3, 2, dilation=3, output_padding=2), (2, 4)),
    "groups": (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (4, 5)),
    "two": (nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 4)),
    "two_all": (
        nn.ConvTranspose2d(4, 2, 3, 2, padding=2, output_padding=1, groups=2, dilation=2),
        (4, 3, 4),
    ),
    "three": (nn.ConvTranspose3d(2, 2, 2, stride=2, groups=2), (2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", list(TRANSPOSED))
def test_transposed_convolutions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = TRANSPOSED[name]
    x = torch.randn(3, *shape, dtype=torch.float64)
    names = {f"0.{n}" for n, _ in layer.named_parameters()}
    check(nn.Sequential(layer, nn.Tanh()), x, names, monkeypatch)


def test_a_transposed_convolution_used_twice_and_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Weighted(
        lambda x, w: F.conv_transpose1d(
            torch.tanh(F.conv_transpose1d(x, w, padding=1)), w, stride=1
        ),
        (2, 2, 3),
    )
    check(model, torch.randn(3, 2, 5).double(), {"w.0"}, monkeypatch)
    # The same weight forwards and backwards, as in a tied autoencoder: two kinds of use.
    model = Weighted(lambda x, w: F.conv_transpose1d(torch.tanh(F.conv1d(x, w)), w), (3, 2, 2))
    check(model, torch.randn(3, 2, 5).double(), {"w.0"}, monkeypatch)


EQUATIONS = {
    "product": ("nh,hd->nd", (4,), (4, 3)),
    "implicit": ("ah,hd", (4,), (4, 3)),
    "spaces": (" n h , h d -> n d ", (4,), (4, 3)),
    "weight_first": ("hd,nh->nd", (4,), (4, 3)),
    "transposed": ("nh,dh->dn", (4,), (3, 4)),
    "positions": ("nth,hd->ntd", (5, 4), (4, 3)),
    "heads": ("nth,hka->nkta", (3, 4), (4, 2, 3)),
    "heads_back": ("nkta,kah->nth", (2, 3, 4), (2, 4, 3)),
    "groups": ("ngh,ghd->ngd", (2, 4), (2, 4, 3)),
    "scale": ("nh,h->nh", (4,), (4,)),
    "outer": ("nh,d->nhd", (4,), (3,)),
    "summed_input": ("nth,hd->nd", (5, 4), (4, 3)),
    "dots": ("...h,hd->...d", (5, 4), (4, 3)),
    "bilinear": ("nab,bac->nc", (3, 4), (4, 3, 2)),
}


@pytest.mark.parametrize("name", list(EQUATIONS))
def test_einsum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    equation, sample, shape = EQUATIONS[name]

    def f(x: Tensor, w: Tensor) -> Tensor:
        operands = (w, x) if name == "weight_first" else (x, w)
        y = torch.einsum(equation, *operands)
        return y.T if name == "transposed" else y

    x = torch.randn(3, *sample, dtype=torch.float64)
    check(Weighted(f, shape), x, {"w.0"}, monkeypatch)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x, w: torch.einsum("nh,hd->n", x, w)[:, None], (4, 3)),  # the weight is summed
        (lambda x, w: torch.einsum("nh,hh->nh", x, w), (4, 4)),
        (lambda x, w: torch.einsum("nh,hd,de->ne", x, w, torch.eye(3).double()), (4, 3)),
        (lambda x, w: torch.einsum("nh,h->nh", x, w), (1,)),
        (lambda x, w: torch.einsum("...h,...h->...", x, w)[:, None], (4,)),
    ],
)
def test_other_equations_have_their_own_jacobian(function, shape, monkeypatch) -> None:
    check(Weighted(function, shape), torch.randn(3, 4).double(), set(), monkeypatch)


def test_equations_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Weighted(lambda x, w: torch.einsum(x, [0, 1], w, [1, 2], [0, 2]), (4, 3))
    check(model, torch.randn(3, 4).double(), {"w.0"}, monkeypatch)


def test_uses_of_one_weight_along_other_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """W and its transpose, and the same equation twice."""

    def there_and_back(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("nd,hd->nh", torch.tanh(torch.einsum("nh,hd->nd", x, w)), w)

    def twice(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("nh,hd->nd", torch.tanh(torch.einsum("nh,hd->nd", x, w)), w)

    x = torch.randn(3, 4, dtype=torch.float64)
    check(Weighted(there_and_back, (4, 4)), x, {"w.0"}, monkeypatch)
    check(Weighted(twice, (4, 4)), x, {"w.0"}, monkeypatch)


ELEMENTWISE = {
    "scale": (lambda x, w: x * w, (3, 4), [(4,)]),
    "scale_from_the_left": (lambda x, w: w * x, (3, 4), [(3, 4)]),
    "scale_by_one_number": (lambda x, w: torch.mul(x, w), (3, 4), [()]),
    "scale_of_rows": (lambda x, w: x.mul(w), (3, 4), [(3, 1)]),
    "scale_with_a_batch_dimension": (lambda x, w: torch.multiply(w, x), (3, 4), [(1, 3, 4)]),
    "wider_than_the_input": (lambda x, w: x.unsqueeze(2) * w, (4,), [(5,)]),
    "shift": (lambda x, b: x + b, (3, 4), [(4,)]),
    "shift_from_the_left": (lambda x, b: b + x, (3, 4), [(3, 1)]),
    "shift_with_a_factor": (lambda x, b: torch.add(x, b, alpha=-0.5), (3, 4), [(4,)]),
    "shift_of_which_the_input_is_the_factor": (
        lambda x, b: torch.add(b, x, alpha=3),
        (3, 4),
        [(4,)],
    ),
    "both": (lambda x, w, b: x * w + b, (3, 4), [(4,), (4,)]),
    "twice": (lambda x, w: torch.tanh(x * w) * w, (3, 4), [(4,)]),
    "as_scale_and_shift": (lambda x, w: x * w + w, (3, 4), [(4,)]),
    "two_parameters": (lambda x, v, w: x + v * w, (3, 4), [(4,), (4,)]),
    "two_added": (lambda x, v, w: x * (v + w), (3, 4), [(4,), (3, 1)]),
    "of_integers": (lambda x, w: (x > 0).long() * w, (3, 4), [(4,)]),
    "positions": (lambda x, b: F.linear(x, torch.eye(4).double()) + b, (3, 4), [(3, 4)]),
}


@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_scales_and_shifts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, sample, shapes = ELEMENTWISE[name]
    names = {f"w.{i}" for i in range(len(shapes))}
    x = torch.randn(3, *sample, dtype=torch.float64)
    check(Weighted(function, *shapes), x, names, monkeypatch)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x * (w * w),
        lambda x, w: x + (w + w),
        lambda x, w: x / w,
        lambda x, w: x * (2 * w),
        lambda x, w: x.clone().mul_(w),
        lambda x, w: x * w.exp(),
    ],
)
def test_what_is_not_linear_or_not_known(function, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Weighted(function, (4,)), torch.randn(3, 4).double(), set(), monkeypatch)


def _norms() -> dict[str, tuple[nn.Module, tuple[int, ...], set[str]]]:
    both = {"0.weight", "0.bias"}
    tracked = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    no_bias = nn.LayerNorm(4, bias=False)
    return {
        "batch_1d": (nn.BatchNorm1d(4), (4,), both),
        "batch_of_sequences": (nn.BatchNorm1d(4), (4, 3), both),
        "batch_2d": (nn.BatchNorm2d(4, eps=0.1), (4, 3, 2), both),
        "layer": (nn.LayerNorm(4), (3, 4), both),
        "layer_of_two_dimensions": (nn.LayerNorm((3, 4), eps=0.1), (2, 3, 4), both),
        "layer_without_bias": (no_bias, (3, 4), {"0.weight"}),
        "group": (nn.GroupNorm(2, 4, eps=0.1), (4, 3), both),
        "instance": (nn.InstanceNorm2d(4, affine=True, eps=0.1), (4, 3, 2), both),
        "instance_with_statistics": (tracked, (4, 3), both),
        "root_mean_square": (nn.RMSNorm(4), (3, 4), {"0.weight"}),
        "root_mean_square_with_eps": (nn.RMSNorm((3, 4), eps=0.2), (3, 4), {"0.weight"}),
    }


@pytest.mark.parametrize("name", list(_norms()))
def test_norms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, sample, names = _norms()[name]
    for p in layer.parameters():
        nn.init.normal_(p)
    for key, buffer in layer.named_buffers():
        if key.startswith("running"):
            nn.init.uniform_(buffer, 0.5, 2.0)
    before = {k: b.clone() for k, b in layer.named_buffers()}
    x = torch.randn(3, *sample, dtype=torch.float64)
    check(nn.Sequential(layer, nn.Tanh()), x, names, monkeypatch)
    assert all(torch.equal(b, before[k].to(b.dtype)) for k, b in layer.named_buffers())


def test_a_norm_of_which_one_half_is_used_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.norm, self.name = nn.LayerNorm(4), name

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * getattr(self.norm, self.name).sin()

    x = torch.randn(3, 4, dtype=torch.float64)
    check(Half("weight"), x, {"norm.bias"}, monkeypatch)
    check(Half("bias"), x, {"norm.weight"}, monkeypatch)
    frozen = nn.Sequential(nn.LayerNorm(4), nn.Tanh())
    frozen[0].weight.requires_grad_(False)
    check(frozen, x, {"0.bias"}, monkeypatch)


def test_parameters_without_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
        nothing = x[:, :0] * w + b
        return x * v + nothing.sum(1, keepdim=True)

    check(Weighted(f, (0,), (0,), (4,)), torch.randn(3, 4).double(), {"w.2"}, monkeypatch)


def test_small_parameters_take_the_form_of_jacobians() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(24, 3))
    structure = plan_of(layer.eval(), torch.randn(3, 4, 3, 2))
    assert not structure.is_gram("0.weight")
    assert not structure.is_gram("0.bias")
    transposed = nn.Sequential(nn.ConvTranspose2d(64, 64, 3), nn.Flatten())
    assert plan_of(transposed, torch.randn(3, 64, 1, 1)).is_gram("0.weight")


@pytest.mark.parametrize("contraction", ["gram", "features", "jacobian"])
def test_padding_that_a_sample_holds_several_times(
    contraction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(6, 4, padding_idx=2), nn.Linear(4, 3)
            nn.init.normal_(self.table.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.table(x).cumsum(1)).mean(1))

    model = Tokens().double()
    x = torch.tensor([[2, 2, 1, 2], [2, 5, 2, 2], [0, 1, 3, 4], [2, 2, 2, 2]])
    monkeypatch.setattr(_plan, "cheapest", forced(contraction))
    expected = ntk_loop(model, x, x)
    for output in ("full", "mean", "diagonal", "trace"):
        kernel = empirical_ntk(model, x, output=output, method="structured")
        assert relative_error(kernel, reduced(expected, output)) < 1e-12


def test_bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x[..., :3], x[..., 3:])).flatten(1)

    check(Products(), torch.randn(4, 5).double(), {"layer.weight", "layer.bias"}, monkeypatch)
    tokens = torch.randn(3, 2, 5).double()
    check(Products(), tokens, {"layer.weight", "layer.bias"}, monkeypatch)


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


ADDMM = {
    "a row": (lambda x, w, b: torch.addmm(b, rows(x), w), [(4, 3), (3,)], {"w.0", "w.1"}),
    "a method": (lambda x, w, b: b.addmm(rows(x), w), [(4, 3), (3,)], {"w.0", "w.1"}),
    "by name": (
        lambda x, w, b: torch.addmm(mat2=w, mat1=rows(x), input=b, alpha=1),
        [(4, 3), (3,)],
        {"w.0", "w.1"},
    ),
    "a constant row": (
        lambda x, w: torch.addmm(x.new_ones(3), rows(x), w),
        [(4, 3)],
        {"w.0"},
    ),
    "twice": (
        lambda x, w, b: torch.addmm(b, torch.tanh(torch.addmm(b, rows(x), w)), w),
        [(4, 4), (4,)],
        {"w.0", "w.1"},
    ),
    "scaled": (lambda x, w, b: torch.addmm(b, rows(x), w, alpha=2), [(4, 3), (3,)], set()),
    "scaled row": (lambda x, w, b: torch.addmm(b, rows(x), w, beta=2), [(4, 3), (3,)], set()),
    "one number": (lambda x, w, b: torch.addmm(b, rows(x), w), [(4, 3), (1,)], set()),
    "a row of features": (
        lambda x, v, b: torch.addmm(b, v, rows(x).T),
        [(3, 4), (3, 1)],
        set(),
    ),
}


@pytest.mark.parametrize("sample", [(4,), (5, 4)])
@pytest.mark.parametrize("name", ADDMM)
def test_addmm(name: str, sample: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    function, shapes, names = ADDMM[name]

    def outputs(x: Tensor, *w: Tensor) -> Tensor:
        return function(x, *w).reshape(len(x), -1)

    class EachSample(Weighted):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super(EachSample, self).forward(s) for s in x.split(1)])

    kind = EachSample if name == "a row of features" else Weighted
    check(kind(outputs, *shapes), torch.randn(3, *sample).double(), names, monkeypatch)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 3)])
@pytest.mark.parametrize("channels", [1, 4])
def test_prelu(channels: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.PReLU(channels), nn.Flatten(), nn.Tanh())
    check(model, torch.randn(4, *shape).double(), {"0.weight"}, monkeypatch)


class Attention(nn.Module):
    """Attention of torch, of one value or of two."""

    def __init__(self, is_crossed: bool = False, needs_weights: bool = True, **how) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True, **how)
        self.memory = nn.Parameter(torch.randn(1, 5, how.get("kdim", 4)))
        self.is_crossed, self.needs_weights = is_crossed, needs_weights

    def forward(self, x: Tensor) -> Tensor:
        other = self.memory.expand(len(x), -1, -1) if self.is_crossed else x
        mask = torch.ones(x.shape[1], other.shape[1], dtype=torch.bool).triu(1)
        out, weights = self.heads(x, other, other, attn_mask=mask, need_weights=self.needs_weights)
        return torch.tanh(out).flatten(1) if weights is None else out.sum(1) + weights.sum(1)[:, :4]


@pytest.mark.parametrize(
    ("how", "apart"),
    [
        ({}, set()),
        ({"needs_weights": False}, set()),
        ({"bias": False}, set()),
        ({"is_crossed": True}, {"in_proj_weight", "in_proj_bias"}),
        ({"is_crossed": True, "kdim": 3, "vdim": 3, "needs_weights": False}, {"in_proj_bias"}),
        ({"add_bias_kv": True}, {"bias_k", "bias_v"}),
        ({"add_zero_attn": True, "needs_weights": False}, set()),
    ],
)
def test_attention_is_made_of_linear_operations(how: dict[str, bool], apart: set[str]) -> None:
    model, x = Attention(**how).double(), torch.randn(3, 4, 4, dtype=torch.float64)
    expected = ntk_loop(model, x, x)
    assert relative_error(empirical_ntk(model, x, method="structured"), expected) < 1e-12
    weights = {n for n, _ in model.heads.named_parameters()} - apart
    assert {f"heads.{n}" for n in weights} <= covered(model, x)
