"""The structured method covers every parameter once, and trusts no plan that it has not checked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, by_name
from oracles import contract_full, reduced, relative_error
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk._functional import model_function, quiet
from torch_ntk.empirical import _jacobian, _pairs, _prepare, _uses, _weights
from torch_ntk.empirical._trial import try_out
from torch_ntk.empirical.rules import RULES
from torch_ntk.empirical.rules._linear import LinearUse

OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


def structure_of(model: nn.Module, x: Tensor, output: str = "full") -> _prepare.Structure:
    with quiet(model, x.device):
        fn = model_function(model)
        x = fn.input("x1", x)
        return _prepare.prepare(fn, x, None, try_out(fn, "x1", x).outputs, output)


def covered(model: nn.Module, x: Tensor) -> set[str]:
    structure = structure_of(model, x)
    names = set(structure.groups) | set(structure.plan.rest)
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not set(structure.groups) & set(structure.plan.rest)
    return set(structure.groups)


class Functional(nn.Module):
    """Weights used by plain functions, one of them in two ways that rules understand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.v = nn.Parameter(torch.randn(4, 3))
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.w) * self.scale
        return torch.matmul(F.linear(h, self.w), self.v)


def test_weights_of_linear_operations_are_covered() -> None:
    x = torch.randn(3, 4)
    assert covered(Functional(), x) == {"w", "v", "scale"}
    assert covered(MLP([4, 5, 2]), x) == {"0.weight", "2.weight"}
    net = nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(8, 2))
    every = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert covered(net, torch.randn(3, 2, 4)) == every
    tokens = nn.Sequential(
        nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2, bias=False)
    )
    assert covered(tokens, torch.randint(0, 7, (3, 2))) == {"0.weight", "2.weight"}


class PartlyUnknown(nn.Module):
    """One weight in a linear layer and, besides, in an operation that no rule knows."""

    def __init__(self, other) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w) + self.other(self.w)


@pytest.mark.parametrize(
    "other",
    [
        lambda w: w.square().sum(),
        lambda w: w[0],
        lambda w: torch.stack([w, w]).sum((0, 1)),
        lambda w: F.linear(w, w).sum(0),
        lambda w: w.data.sum() + w.mean(),
        lambda w: torch.addmm(w, w, w).sum(0),
    ],
)
def test_one_unknown_use_moves_the_weight_to_its_own_jacobian(other) -> None:
    model, x = PartlyUnknown(other).double(), torch.randn(5, 4, dtype=torch.float64)
    assert covered(model, x) == set()
    kernel = empirical_ntk(model, x, method="structured")
    assert relative_error(kernel, empirical_ntk(model, x, method="jacobian")) < 1e-12


def test_reading_shapes_and_numbers_is_no_use() -> None:
    model = PartlyUnknown(lambda w: w.shape[0] + w.dim() + float(w.dtype.is_floating_point))
    assert covered(model, torch.randn(5, 4)) == {"w"}


def test_a_rule_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(LinearUse):
        def features(self, source: Tensor) -> Tensor:
            return super().features(source) * 1.01

    def rule(args, kwargs):
        return Wrong(args[0], args[1])

    model, x = MLP([4, 6, 2]).double(), torch.randn(5, 4, dtype=torch.float64)
    expected = empirical_ntk(model, x, method="jacobian")
    monkeypatch.setitem(RULES, F.linear, rule)
    assert covered(model, x) == set()
    assert relative_error(empirical_ntk(model, x, method="structured"), expected) < 1e-12


class Branch(nn.Module):
    """Calls its layers in an order that depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(sample) for sample in x])

    def one(self, sample: Tensor) -> Tensor:
        first, second = (self.a, self.b) if sample.sum().item() > 0 else (self.b, self.a)
        return second(torch.tanh(first(sample)))


def test_another_order_of_calls_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    real = _jacobian.kernel
    monkeypatch.setattr(_jacobian, "kernel", lambda *a: (taken.append(1), real(*a))[1])
    model = Branch().double()
    x = torch.tensor([[1.0, 2, 3], [-1, -2, -3], [3, -1, -5]], dtype=torch.float64)
    kernel = empirical_ntk(model, x, method="structured")
    assert taken
    assert relative_error(kernel, empirical_ntk(model, x, method="jacobian")) < 1e-12


@pytest.mark.parametrize("by_gram", [True, False])
@pytest.mark.parametrize("case", [c for c in CASES if not c.slow], ids=lambda c: c.name)
def test_both_orders_of_contraction(
    case: Case, by_gram: bool, monkeypatch: pytest.MonkeyPatch, oracle
) -> None:
    monkeypatch.setattr(_weights.Cost, "by_gram", by_gram)
    monkeypatch.setattr(_weights, "_CHUNK_BYTES", 512)  # more than one piece of the columns
    j1, j2 = oracle(case)
    for output in OUTPUTS:
        kernel = empirical_ntk(
            case.build(), case.inputs(4), case.inputs(3, 1), output=output, method="structured"
        )
        assert relative_error(kernel, reduced(contract_full(j1, j2), output)) < 1e-10


def test_gram_matrices_are_taken_for_few_positions_and_jacobians_for_many() -> None:
    dense = MLP([64, 64, 64, 5])
    assert all(structure_of(dense, torch.randn(8, 64)).by_gram(n) for n in ("0.weight", "2.weight"))
    image = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 2))
    structure = structure_of(image, torch.randn(8, 2, 8, 8))
    assert not structure.by_gram("0.weight")
    assert structure.by_gram("2.weight")


def test_perturbing_needs_the_planned_calls() -> None:
    case = by_name("mlp")
    model, x = case.build(), case.inputs(2)
    with quiet(model, x.device):
        fn = model_function(model)
        plan = _uses.record(fn, x[0])
        zeros = [torch.zeros(s, dtype=fn.dtype) for s in plan.shapes]
        rest = {n: fn.params[n] for n in plan.rest}
        out, sources = _uses.perturbed(fn, plan, zeros, rest, x[0])
        assert torch.equal(out, fn.single(fn.params, x[0]))
        assert len(sources) == len(plan.uses)
        shorter = plan.without({plan.names[-1]}, fn.params)
        reversed_plan = _uses.Plan(
            plan.uses[::-1], plan.names[::-1], plan.calls[::-1], plan.shapes[::-1], plan.rest
        )
        with pytest.raises(_uses.PlanChangedError):
            _uses.perturbed(fn, reversed_plan, zeros[::-1], rest, x[0])
    assert set(shorter.rest) == {*plan.rest, plan.names[-1]}


class Biases(nn.Module):
    """Weights that share a bias, a weight with two biases, and one with its own in two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.randn(16, 16) / 4) for _ in range(4))
        self.shared, self.one, self.two, self.own = (
            nn.Parameter(torch.randn(16)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(F.linear(x, self.a, self.shared), self.b, bias=self.shared))
        h = torch.tanh(F.linear(torch.tanh(F.linear(h, self.c, self.one)), self.c, self.two))
        return F.linear(torch.tanh(F.linear(h, self.d, self.own)), self.d, self.own)


def test_a_bias_is_joined_with_its_weight_only_if_all_their_calls_are_the_same() -> None:
    model, x = Biases().double(), torch.randn(5, 16, dtype=torch.float64)
    assert structure_of(model, x).biases == {"d": "own"}
    expected = empirical_ntk(model, x, method="jacobian")
    for output in OUTPUTS:
        kernel = empirical_ntk(model, x, output=output, method="structured")
        assert relative_error(kernel, reduced(expected, output)) < 1e-12
    for by in ("parameter", "module"):
        parts = empirical_ntk(model, x, by=by, method="structured")
        wanted = empirical_ntk(model, x, by=by, method="jacobian")
        assert parts.keys() == wanted.keys()
        assert all(relative_error(parts[k], wanted[k]) < 1e-12 for k in parts)
    only = empirical_ntk(model, x, params=["own", "shared"], method="structured")
    wanted = empirical_ntk(model, x, params=["own", "shared"], method="jacobian")
    assert relative_error(only, wanted) < 1e-12


class MaskedLast(nn.Module):
    """A last layer whose cotangents are the identity for some samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.tanh(self.first(x)))
        return torch.where(x[:, :1] > 0, y, 2 * y)


@pytest.mark.parametrize("output", OUTPUTS)
def test_identity_cotangents_of_some_samples_are_not_taken_for_all(output: str) -> None:
    model = MaskedLast().double()
    x = torch.randn(6, 3, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, 1, 1, -1, -1, -1])
    expected = reduced(empirical_ntk(model, x, method="jacobian"), output)
    for size in (None, 3, 2):
        kernel = empirical_ntk(model, x, output=output, method="structured", batch_size=size)
        assert relative_error(kernel, expected) < 1e-12
    kernel = empirical_ntk(model, x[:3], x[3:], output=output, method="structured")
    assert relative_error(kernel, expected[:3, 3:]) < 1e-12


@pytest.mark.parametrize("output", OUTPUTS)
def test_halves_are_mirrored(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pairs, "_ROWS", 1)
    case = by_name("mlp")
    model, x = case.build(), case.inputs(21)
    kernel = empirical_ntk(model, x, output=output, method="structured")
    expected = empirical_ntk(model, x, x.clone(), output=output, method="structured")
    assert relative_error(kernel, expected) < 1e-13
    mirrored = kernel.permute(1, 0, 3, 2) if kernel.ndim == 4 else kernel.transpose(0, 1)
    assert torch.equal(kernel, mirrored)


def test_layout_that_an_operation_gets_wrong_is_not_taken() -> None:
    # torch's gradient of instance_norm is wrong for one image whose channels are innermost.
    normed = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.Conv2d(4, 1, 3)
    )
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3))
    x = torch.randn(2, 2, 6, 6)
    for model, expected in ((normed, False), (plain, True)):
        fn = model_function(model, None, torch.float64)
        structure = _prepare.prepare(fn, fn.input("x", x), None, 4, "full")
        assert structure.plan.channels_last is expected
        assert not structure.plan.rest
