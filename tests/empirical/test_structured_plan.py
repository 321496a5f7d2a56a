"""The structured method covers every parameter once, from where it is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import by_name
from oracles import reduced, relative_error
from plans import OUTPUTS, covered, method_of, plan_of
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk._functional import Batch, evaluating
from torch_ntk.empirical.methods import JacobianMethod
from torch_ntk.empirical.rules import RULES, RuleError
from torch_ntk.empirical.structured import ParameterUses, UsesChangedError
from torch_ntk.empirical.structured._parameter_uses import perturbed


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


def test_a_rule_that_fails_is_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(args, kwargs):
        raise IndexError("out of range")

    monkeypatch.setitem(RULES, F.linear, rule)
    model, x = MLP([4, 6, 2]).double(), torch.randn(5, 4, dtype=torch.float64)
    with pytest.raises(RuleError, match=r"'linear' fails.*IndexError.*method='jacobian'"):
        empirical_ntk(model, x)
    empirical_ntk(model, x, method="jacobian")


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
    real = JacobianMethod.kernel
    monkeypatch.setattr(JacobianMethod, "kernel", lambda self: (taken.append(1), real(self))[1])
    model = Branch().double()
    x = torch.tensor([[1.0, 2, 3], [-1, -2, -3], [3, -1, -5]], dtype=torch.float64)
    kernel = empirical_ntk(model, x, method="structured")
    assert taken
    assert relative_error(kernel, empirical_ntk(model, x, method="jacobian")) < 1e-12


def test_perturbing_needs_the_planned_calls() -> None:
    case = by_name("mlp")
    model, x = case.build(), case.inputs(2)
    method = method_of(model, x)
    fn, uses = method.job.fn, method.plan.uses
    (sample, _) = Batch.of("x", x).samples()
    with evaluating(model, x):
        zeros = [torch.zeros(s, dtype=fn.dtype) for s in uses.shapes]
        rest = {n: fn.params[n] for n in uses.rest}
        out, sources = perturbed(fn, uses, zeros, rest, sample)
        assert torch.equal(out, fn.single(fn.params, sample))
        assert len(sources) == len(uses.uses)
        backwards = ParameterUses(uses.uses[::-1], uses.calls[::-1], uses.shapes[::-1], uses.rest)
        with pytest.raises(UsesChangedError):
            perturbed(fn, backwards, zeros[::-1], rest, sample)
    last = uses.uses[-1].name
    assert set(uses.without({last}).rest) == {*uses.rest, last}


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
    assert plan_of(model, x).biases == {"d": "own"}
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
