"""The kernel J P Jᵀ: every way to take it, and what combines with it, beside the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Case, by_name
from oracles import (
    contract_full,
    jacobian_loop,
    jacobian_with_graph,
    reduced,
    relative_error,
)
from plans import OUTPUTS
from preconditions import named, scales, times_root
from small_pieces import in_pieces
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import empirical_ntk, explain
from torch_ntk.empirical.contract import _jacobian_pieces
from torch_ntk.empirical.structured import _kernel, _plan

METHODS = ["structured", "jacobian", "vector_product"]
SELECTED = [
    # Linear layers with biases that are joined; convolutions in either layout; parameters that are
    # groups; an embedding; shared weights; what no rule covers; names that are changed.
    *("mlp", "ntk_conv", "conv_groups_dilation", "conv_transpose_maxpool", "batchnorm1d"),
    *("group_norm", "tied_embedding", "tied_weights", "layer_three_times", "embedding_bag"),
    *("lstm", "attention", "functional", "compiled", "parameter_of_no_entries"),
]


@pytest.mark.parametrize("name", SELECTED)
def test_every_method(name: str, oracle) -> None:
    case = by_name(name)
    j1, j2 = oracle(case)
    model, x1, x2 = case.build(), case.inputs(4), case.inputs(3, 1)
    for kind in ("uniform", "varied"):
        p = scales(model, kind)
        before = snapshot(model, *p.values())
        cross = contract_full(times_root(j1, p), times_root(j2, p))
        square = contract_full(times_root(j1, p), times_root(j1, p))
        for method in METHODS:
            options: dict[str, Any] = {"method": method, "precondition": p}
            assert relative_error(empirical_ntk(model, x1, x2, **options), cross) < 1e-10
            kernel = empirical_ntk(model, x1, **options)
            assert relative_error(kernel, square) < 1e-10
            assert torch.equal(kernel, kernel.permute(1, 0, 3, 2))
        assert snapshot(model, *p.values()) == before


@pytest.mark.parametrize("contraction", ["gram", "features", "jacobian", "pairs"])
@pytest.mark.parametrize("name", SELECTED)
def test_every_order_of_contraction(
    name: str, contraction: str, monkeypatch: pytest.MonkeyPatch, oracle
) -> None:
    """In small pieces, with weights and biases of different kinds of P."""
    monkeypatch.setattr(
        _plan, "cheapest", lambda found: found.get(contraction) or next(iter(found.values()))
    )
    in_pieces(monkeypatch, chunk=512, again=512, columns=512, features=1)
    for module in (_plan, _kernel):
        monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(_plan.Plan, "_late_size", lambda *_: 0)  # whatever can be late is
    case = by_name(name)
    j1, j2 = oracle(case)
    model, both = case.build(), torch.cat([case.inputs(4), case.inputs(3, 1)])
    for k, kind in enumerate(("uniform", "varied", "even", "odd")):
        p = scales(model, kind)
        j = times_root(torch.cat([j1, j2]), p)
        output = OUTPUTS[(SELECTED.index(name) + k) % 5]
        kernel = empirical_ntk(model, both, output=output, method="structured", precondition=p)
        assert relative_error(kernel, reduced(contract_full(j, j), output)) < 1e-10


class Many(nn.Module):
    """Operations that the table has not: convolutions in each layout, einsum, bilinear, scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.thin = nn.Conv2d(1, 3, 1, stride=1, padding=1)  # one feature for each unit
        self.line = nn.Conv1d(4, 6, 2, padding=1)
        self.up = nn.ConvTranspose1d(6, 4, 3, groups=2)
        self.mixing = nn.Parameter(torch.randn(2, 4, 3))
        self.bilinear = nn.Bilinear(3, 2, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(torch.tanh(self.thin(x))))
        h = torch.tanh(self.up(torch.tanh(self.line(h.flatten(2))))).mean(2)
        h = torch.einsum("nc,kcd->nkd", h, self.mixing)
        h = torch.tanh(self.bilinear(h[:, 0], h[:, 1, :2])) * self.scale
        return self.last(h) @ self.last.weight


@pytest.mark.parametrize("accumulate", [None, torch.float64])
@pytest.mark.parametrize("kind", ["uniform", "varied"])
def test_unformed_jacobians_stay_unformed(
    kind: str, accumulate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns are scaled where they are made, a block at a time."""
    model, x = Many().double(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    p = scales(model, kind)
    j = times_root(jacobian_loop(model, x), p)
    for module in (_plan, _kernel):
        monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(_plan.Plan, "_late_size", lambda *_: 0)
    monkeypatch.setattr(_plan, "cheapest", lambda found: found["jacobian"])
    made = []
    real = _jacobian_pieces.Unformed.fill

    def fill(self, *a):
        made.append(a[1:])
        real(self, *a)

    monkeypatch.setattr(_jacobian_pieces.Unformed, "fill", fill)
    options: dict[str, Any] = {"method": "structured", "precondition": p}
    for size in (1, 300, 10**6):
        in_pieces(monkeypatch, columns=size, features=1)
        for output in ("full", "diagonal", "mean"):
            kernel = empirical_ntk(model, x, output=output, **options)
            assert relative_error(kernel, reduced(contract_full(j, j), output)) < 1e-10
    assert len(set(made)) > 4
    narrow = model.float()
    kernel = empirical_ntk(narrow, x.float(), accumulate=accumulate, **options)
    assert kernel.dtype == (accumulate or torch.float32)
    assert relative_error(kernel, contract_full(j, j)) < 1e-5


class Tokens(nn.Module):
    """A table that is read and by which logits are taken, or only read."""

    def __init__(self, tied: bool, padding: int | None = 0) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(300, 4, padding_idx=padding), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.tied = tied
        nn.init.normal_(self.table.weight)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.table(ids))) + self.table(ids[:, :1])
        if not self.tied:
            return self.head(h.mean(1))
        logits = F.linear(h.cumsum(1), self.table.weight)[:, -1, ::60]
        return logits + self.head(h.mean(1)).sum(1, keepdim=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("output", ["full", "diagonal", "trace"])
def test_embeddings(tied: bool, output: Any) -> None:
    """P of a table goes to the cotangents of its rows; that of a tied one if it is one number."""
    model = Tokens(tied).double()
    x = torch.randint(0, 6, (4, 3))
    j = jacobian_loop(model, x)
    for kind in ("uniform", "varied"):
        p = scales(model, kind)
        own = times_root(j, p)
        expected = reduced(contract_full(own, own), output)
        options: dict[str, Any] = {"output": output, "precondition": p}
        assert relative_error(empirical_ntk(model, x, **options), expected) < 1e-10
        pairs = empirical_ntk(model, x[:3], x[1:], method="structured", **options)
        assert relative_error(pairs, expected[:3, 1:]) < 1e-10
        found = explain(model, x, **options).lines
        how = {line.parameter: (line.contraction, line.formed_for_p) for line in found}
        if tied:
            formed = ("jacobian", True) if kind == "varied" else ("tied", False)
            assert how["table.weight"] == formed
            kernel = empirical_ntk(model, x, batch_size=2, **options)  # formed for each block
            assert relative_error(kernel, expected) < 1e-10
        else:
            assert how["table.weight"] == ("gram", False)


def test_a_tied_table_is_contracted_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Jacobian, of O·V·d numbers for a sample, never stands in memory as a whole."""
    for module in (_plan, _kernel):
        monkeypatch.setattr(module, "SMALL", 0)
    model, x = Tokens(True).double(), torch.randint(0, 6, (4, 3))
    p = scales(model, "varied")
    j = times_root(jacobian_loop(model, x), p)
    pieces = []
    real = _kernel.Unformed

    def unformed(*a):
        pieces.append(real(*a))
        return pieces[-1]

    monkeypatch.setattr(_kernel, "Unformed", unformed)
    for size in (1, 10**6):
        in_pieces(monkeypatch, columns=size, features=1)
        kernel = empirical_ntk(model, x, method="structured", precondition=p)
        assert relative_error(kernel, contract_full(j, j)) < 1e-10
    tables = [piece for piece in pieces if piece._read is not None]
    assert len(tables) == 2
    narrow = empirical_ntk(model.float(), x, accumulate=torch.float64, precondition=p)
    assert relative_error(narrow, contract_full(j, j)) < 1e-5


class Summed(nn.Module):
    """One network at every position."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).sum(1)


def test_explain_says_where_p_excludes_gram_matrices() -> None:
    net = nn.Sequential(*(nn.Linear(64, n) for n in (64, 64, 1)))
    model, x = Summed(net), torch.randn(5, 4, 64)
    p = {n: torch.ones_like(t) for n, t in model.named_parameters()}
    p["net.0.weight"][0, 0] = 2.0
    p["net.1.bias"] *= 3.0
    lines = {line.parameter: line for line in explain(model, x, precondition=p).lines}
    first = lines["net.0.weight"]
    assert (first.contraction, first.formed_for_p) == ("jacobian", True)
    assert lines["net.0.bias"].contraction != "joined"
    assert [lines[f"net.1.{n}"].contraction for n in ("weight", "bias")] == ["gram", "joined"]
    assert not any(line.formed_for_p for n, line in lines.items() if n != "net.0.weight")
    text = str(explain(model, x, precondition=p))
    assert text.count("jacobian, P") == 1
    # The Jacobian of a weight that is contracted otherwise costs nothing more for P.
    uniform = {n: torch.full_like(t, 2.0) for n, t in p.items()}
    assert ", P" not in str(explain(model, x, precondition=uniform))
    # With a single position products of inputs through P take less than Jacobians.
    lines = {line.parameter: line for line in explain(model, x[:, :1], precondition=p).lines}
    assert lines["net.0.weight"].contraction == "pairs"
    own = 64 * 64 + 64 + 64  # a b, and b for the inner product with cotangents and the outer one
    assert lines["net.0.weight"].operations == 2 * 12.5 * own


@pytest.mark.parametrize("output", ["full", "diagonal", "mean"])
def test_gradients_through_p(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two positions, in pieces of a few pairs of samples."""
    in_pieces(monkeypatch, again=2000)
    monkeypatch.setattr(_plan, "cheapest", lambda found: found.get("pairs") or found["gram"])
    model = Summed(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).double()
    x, p = torch.randn(5, 2, 3, dtype=torch.float64), scales(model, "varied")
    weights = torch.randn(5, 5, 2, 2, dtype=torch.float64)
    found = []
    for differentiable in (True, False):
        if differentiable:
            options: dict[str, Any] = {"output": output, "differentiable": True}
            kernel = empirical_ntk(model, x, precondition=p, method="structured", **options)
        else:
            j = times_root(jacobian_with_graph(model, x), p)
            kernel = reduced(contract_full(j, j), output)
        w = weights if output == "full" else weights[..., 0] if output == "diagonal" else 1.0
        loss = (kernel * w).square().sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None and g.any()]))
    assert relative_error(found[0], found[1]) < 1e-10


def _net(case: str = "mlp") -> tuple[nn.Module, Tensor, dict[str, Tensor], Tensor]:
    found: Case = by_name(case)
    model, x = found.build(), found.inputs(4)
    p = scales(model, "even")
    return model, x, p, times_root(jacobian_loop(found.build(), x), p)


@pytest.mark.parametrize("method", METHODS)
def test_parts(method: Any) -> None:
    model, x, p, j = _net()
    parts = empirical_ntk(model, x, method=method, precondition=p, by="parameter")
    start = 0
    for n, t in named(model).items():
        own = j[..., start : start + t.numel()]
        start += t.numel()
        assert relative_error(parts[n], contract_full(own, own)) < 1e-10
    modules = empirical_ntk(model, x, method=method, precondition=p, by="module")
    both = parts["0.weight"] + parts["0.bias"]
    assert relative_error(modules["0"], both) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_some_parameters(method: Any) -> None:
    """P of parameters that are not selected is not used."""
    model, x, p, j = _net()
    options: dict[str, Any] = {"method": method, "params": ["2.*"], "precondition": p}
    own = j[..., -27:]
    assert relative_error(empirical_ntk(model, x, **options), contract_full(own, own)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_probes(method: Any) -> None:
    model, x, p, j = _net()
    full = contract_full(j, j)
    for output in OUTPUTS:
        kernel = empirical_ntk(model, x, output=output, method=method, precondition=p)
        assert relative_error(kernel, reduced(full, output)) < 1e-10
    exact = empirical_ntk(model, x, output="probed", method=method, precondition=p)
    assert relative_error(exact.kernel, reduced(full, "mean")) < 1e-10
    signs = 2 * torch.randint(
        0, 2, (2, 3), generator=torch.Generator().manual_seed(3), dtype=torch.int8
    )
    signs = (signs - 1).double() / 3**0.5
    found = empirical_ntk(
        model, x, output="probed", probes=2, seed=3, method=method, precondition=p
    )
    of_each = torch.einsum("nmij,ki,kj->nmk", full, signs, signs)
    assert relative_error(found.kernel, of_each.mean(2)) < 1e-10


def test_functions_forwards_and_blocks() -> None:
    model, x, p, j = _net()
    expected = contract_full(j, j)
    params = {n: t.detach().clone() for n, t in model.named_parameters()}

    def f(values: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (batch,))

    for kernel in (
        empirical_ntk(f, x, params=params, precondition=p),
        empirical_ntk(model, {"of": x}, forward_fn=lambda m, b: m(b["of"]), precondition=p),
        empirical_ntk(model, x, batch_size=1, precondition=p),
        empirical_ntk(model, x, max_memory="30MB", precondition=p),
        empirical_ntk(model, x, check=False, precondition=p),
    ):
        assert relative_error(kernel, expected) < 1e-10
    wide = empirical_ntk(model.float(), x.float(), dtype=torch.float64, precondition=p)
    assert wide.dtype == torch.float64
    assert relative_error(wide, expected) < 1e-5


def test_coupled_and_training() -> None:
    """Rows that batch normalization sees together."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    p = scales(model, "varied")
    out = model(x).flatten()
    rows = [torch.autograd.grad(f, list(model.parameters()), retain_graph=True) for f in out]
    j = times_root(torch.stack([torch.cat([g.flatten() for g in r]) for r in rows]), p)
    expected = (j @ j.T).view(5, 2, 5, 2).permute(0, 2, 1, 3)
    kernel = empirical_ntk(model, x, coupled=True, training=True, precondition=p)
    assert relative_error(kernel, expected) < 1e-10


def test_wrong_factors_are_found_out_and_scaled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check compares Jacobians without P; those by plain loops get it as well."""
    model, x, p, j = _net()
    real = _kernel.StructuredMethod._cotangents_of

    def wrong(self, name, b):
        return [2 * t if name == "2.weight" else t for t in real(self, name, b)]

    monkeypatch.setattr(_kernel.StructuredMethod, "_cotangents_of", wrong)
    checked = []
    loops = _kernel.StructuredMethod.without

    def without(self, names):
        checked.append(names)
        return loops(self, names)

    monkeypatch.setattr(_kernel.StructuredMethod, "without", without)
    # The check is fed by the uses themselves, which are right: what it takes by loops is told.
    method = _kernel.StructuredMethod._check_uses

    def check_uses(self, check, start, found):
        method(self, check, start, found)
        if "2.weight" in self.plan.groups:
            check.sums.sums["2.weight"].total.mul_(2)

    monkeypatch.setattr(_kernel.StructuredMethod, "_check_uses", check_uses)
    kernel = empirical_ntk(model, x, method="structured", precondition=p)
    assert checked == [{"2.weight"}]
    assert relative_error(kernel, contract_full(j, j)) < 1e-10


class Modes(nn.Module):
    """Complex weights on Fourier modes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4).double()
        self.w = nn.Parameter(torch.randn(3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.fft.irfft(torch.fft.rfft(self.a(x)) * self.w, n=4))


@pytest.mark.parametrize("method", METHODS)
def test_complex_parameters(method: Any) -> None:
    """P of a complex number is that of its real and of its imaginary part."""
    model, x = Modes(), torch.randn(3, 4, dtype=torch.float64)
    p = {n: torch.rand(t.shape, dtype=torch.float64) + 0.1 for n, t in model.named_parameters()}
    rows = []
    for f in model(x).flatten():
        grads = torch.autograd.grad(f, [model.a.weight, model.a.bias, model.w], retain_graph=True)
        parts = [torch.view_as_real(g) if g.is_complex() else g for g in grads]
        roots = [p["a.weight"], p["a.bias"], p["w"].unsqueeze(1).expand(3, 2)]
        rows.append(
            torch.cat([(g * r.sqrt()).flatten() for g, r in zip(parts, roots, strict=True)])
        )
    j = torch.stack(rows).view(3, 4, -1)
    kernel = empirical_ntk(model, x, method=method, precondition=p)
    assert relative_error(kernel, contract_full(j, j)) < 1e-10
