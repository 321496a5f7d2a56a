"""The structured method covers every parameter once, and trusts no plan that it has not checked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import by_name
from oracles import reduced, relative_error
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk._functional import model_function, quiet
from torch_ntk.empirical import _jacobian, _prepare, _proof, _uses
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


def test_gradients_of_moved_parameters_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fn = model_function(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), None, torch.float64)
    x = fn.input("x", torch.randn(2, 2, 5, 5))
    asked = []

    def disagreeing(fn, laid, plan, x, u):
        asked.append((plan.channels_last, plan.rest))
        wrong = {"0.weight"}
        return wrong if answer(plan) else set()

    monkeypatch.setattr(_proof, "_disagreeing", disagreeing)

    # Right only where the weight is left to automatic differentiation, without channels last.
    def answer(plan):
        return plan.channels_last or not plan.rest

    structure = _prepare.prepare(fn, x, None, 27, "full")
    assert structure.plan.rest == ("0.weight",)
    assert not structure.plan.channels_last
    assert asked == [(True, ()), (True, ("0.weight",)), (False, ()), (False, ("0.weight",))]

    def answer(plan):  # noqa: F811
        return True

    with pytest.raises(RuntimeError, match="inside of a plan"):
        _prepare.prepare(fn, x, None, 27, "full")


class Turns(nn.Module):
    """Convolutions in an order that depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        def one(sample: Tensor) -> Tensor:
            first, second = (self.a, self.b) if bool(sample.sum() > 0) else (self.b, self.a)
            return second(torch.tanh(first(sample)))

        return torch.cat([one(sample) for sample in x.split(1)])


def test_falling_back_restores_the_layout_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = _jacobian.kernel

    def reference(fn, *args):
        seen.extend(p.is_contiguous() for p in fn.params.values())
        return real(fn, *args)

    monkeypatch.setattr(_jacobian, "kernel", reference)
    model = Turns().double()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    x = torch.cat([x, -x])
    kernel = empirical_ntk(model, x, method="structured")
    assert seen == [True] * 4
    assert relative_error(kernel, empirical_ntk(model, x, method="jacobian")) < 1e-12


@pytest.mark.parametrize("bytes_each", [1, 10**9])
def test_large_gradients_are_compared_in_portions(bytes_each, monkeypatch) -> None:
    monkeypatch.setattr(_proof, "_PORTION_BYTES", bytes_each)
    case = by_name("mlp")
    fn = model_function(case.build(), None, None)
    portions = list(_proof._portions(fn.params))
    assert [n for part in portions for n in part] == list(fn.params)
    assert len(portions) == (1 if bytes_each > 1 else min(4, len(portions)))
    x = case.inputs(3)
    assert not _prepare.prepare(fn, x, None, try_out(fn, "x", x).outputs, "full").plan.rest
