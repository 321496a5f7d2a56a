"""What is proved of a model once is not proved again, and nothing else is taken for proved."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import by_name
from oracles import ntk_loop, relative_error
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk._functional import model_function
from torch_ntk.empirical import _known, _proof, _trial
from torch_ntk.empirical._known import known


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each proof that is carried out."""
    made: list[str] = []
    plan, coupling = _proof._disagreeing, _trial._check_uncoupled
    monkeypatch.setattr(_proof, "_disagreeing", lambda *a: (made.append("plan"), plan(*a))[1])
    monkeypatch.setattr(
        _trial, "_check_uncoupled", lambda *a: (made.append("coupling"), coupling(*a))[1]
    )
    return made


def test_repeated_calls_prove_nothing_again(proofs: list[str]) -> None:
    case = by_name("mlp")
    model = case.build()
    first = empirical_ntk(model, case.inputs(4))
    assert sorted(proofs) == ["coupling", "plan"]
    again = empirical_ntk(model, case.inputs(4))
    more = empirical_ntk(model, case.inputs(7, 1), case.inputs(4))
    assert len(proofs) == 2
    assert torch.equal(first, again)
    assert relative_error(more, ntk_loop(model, case.inputs(7, 1), case.inputs(4))) < 1e-12
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    x = case.inputs(4)
    assert relative_error(empirical_ntk(model, x), ntk_loop(model, x, x)) < 1e-12
    assert len(proofs) == 2


class Sizes(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "changed",
    [
        lambda m, x: (m, x[..., :3], {}),
        lambda m, x: (m, x, {"output": "trace"}),
        lambda m, x: (m, x, {"params": ["conv.weight"]}),
        lambda m, x: (m, x.float(), {"dtype": torch.float32}),
        lambda m, x: (copy.deepcopy(m), x, {}),
        lambda m, x: (m.requires_grad_(False).last.requires_grad_(True) and m, x, {}),
    ],
)
def test_a_change_is_proved_anew(changed, proofs: list[str]) -> None:
    model, x = Sizes().double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    empirical_ntk(model, x)
    proofs.clear()
    other, x, options = changed(model, x)
    empirical_ntk(other, x, **options)
    assert "plan" in proofs


class _Hidden(torch.autograd.Function):
    """`x + w · w`, out of sight of the modes that see functions."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x + (w * w).sum(0)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, g: Tensor):
        (w,) = ctx.saved_tensors
        return g, 2 * w * g.sum(0)


class Switched(nn.Module):
    """A switch outside of all parameters changes what the forward computes."""

    mode = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.mode == "hidden":
            h = _Hidden.apply(h, self.first.weight)
        if self.mode == "constant":
            h = h + F.linear(x, self.first.weight.detach())
        if self.mode == "coupled":
            h = h - h.mean(0)
        return self.last(h)


@pytest.mark.parametrize("mode", ["hidden", "constant"])
def test_a_switch_is_noticed(mode: str) -> None:
    model, x = Switched().double(), torch.randn(4, 3, dtype=torch.float64)
    assert relative_error(empirical_ntk(model, x), ntk_loop(model, x, x)) < 1e-12
    model.mode = mode
    assert relative_error(empirical_ntk(model, x), ntk_loop(model, x, x)) < 1e-12


def test_coupling_is_noticed_after_a_call_without() -> None:
    model, x = Switched().double(), torch.randn(4, 3, dtype=torch.float64)
    empirical_ntk(model, x)
    model.mode = "coupled"
    with pytest.raises(ValueError, match="one sample at a time"):
        empirical_ntk(model, x)


def test_a_single_sample_proves_no_independence(proofs: list[str]) -> None:
    case = by_name("mlp")
    model = case.build()
    empirical_ntk(model, case.inputs(1))
    proofs.clear()
    empirical_ntk(model, case.inputs(3))
    assert proofs == ["coupling"]


def test_models_are_forgotten_with_their_objects() -> None:
    case = by_name("mlp")
    model = case.build()
    empirical_ntk(model, case.inputs(3))
    key = id(model)
    assert key in _known._known
    del model
    gc.collect()
    assert key not in _known._known


def test_few_signatures_are_kept() -> None:
    model = nn.Linear(2, 1)
    kept = _known.Known()
    kept.uncoupled.update(range(_known._MOST + 1))
    _known._known[id(model)] = (weakref.ref(model), kept)
    empirical_ntk(model, torch.randn(3, 2))
    assert len(kept.uncoupled) == 1
    del _known._known[id(model)]


def test_a_plan_is_recorded_once_and_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    real = _proof.record
    monkeypatch.setattr(_proof, "record", lambda *a: (recorded.append(1), real(*a))[1])
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double()
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    for _ in range(3):
        kernel = empirical_ntk(model, x, method="structured")
        assert relative_error(kernel, empirical_ntk(model, x, method="jacobian")) < 1e-12
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
    assert len(recorded) == 1
    (found,) = known(model_function(model, None, None)).plans.values()
    tensors = [t for use in found.uses for t in vars(use).values() if isinstance(t, torch.Tensor)]
    assert tensors
    assert all(t.device.type == "meta" for t in tensors)
    bound = found.of(dict(model.named_parameters()))
    weights = {id(use.weight) for use in bound.uses}
    assert (
        {use.joins for use in bound.uses if hasattr(use, "joins")}
        == {
            id(model[0].weight),
            id(model[3].weight),
        }
        <= weights
    )
    empirical_ntk(model[:2], x, method="structured")  # another module has a plan of its own
    assert len(recorded) == 2


def test_a_plan_that_is_no_longer_followed_is_forgotten() -> None:
    model, x = MLP([3, 4, 2]).double(), torch.randn(4, 3, dtype=torch.float64)
    expected = empirical_ntk(model, x, method="structured")
    plans = known(model_function(model, None, None)).plans
    ((signature, found),) = plans.items()
    plans[signature] = replace(found, shapes=[torch.Size([9])] * len(found.shapes))
    for _ in range(2):
        kernel = empirical_ntk(model, x, method="structured")
        assert relative_error(kernel, expected) < 1e-12
        assert plans[signature].shapes == found.shapes  # recorded anew


class Padded(nn.Module):
    """One convolution in two spellings of the same operations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.by_hand = nn.Conv2d(2, 3, 3), True

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand:
            y = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.conv.weight)
        else:
            y = F.conv2d(x, self.conv.weight, padding=1)
        return torch.tanh(y).flatten(1)


def test_a_plan_of_another_geometry_is_not_followed() -> None:
    model, x = Padded().double(), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = empirical_ntk(model, x, method="structured")
    plans = known(model_function(model, None, None)).plans
    ((first, padded),) = plans.items()
    model.by_hand = False
    assert relative_error(empirical_ntk(model, x, method="structured"), expected) < 1e-12
    second = next(key for key in plans if key != first)
    plans[second] = padded  # the same weight, call and result
    assert padded.shapes == [torch.Size([1, 3, 4, 4])]
    for _ in range(2):
        assert relative_error(empirical_ntk(model, x, method="structured"), expected) < 1e-12
    assert plans[second] is not padded
