"""`verify` and `explain` tell the truth about a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import by_name
from torch import nn

from torch_ntk import explain, verify
from torch_ntk.empirical._precondition import Precondition
from torch_ntk.empirical.methods import METHODS


@pytest.mark.parametrize(
    "name",
    [
        *("ntk_conv", "batchnorm2d", "tied_embedding", "embedding_max_norm", "layer_three_times"),
        *("spectral_norm_hook", "weight_norm_hook", "lstm", "transformer_encoder", "functional"),
        *("frozen_parameters", "parameter_of_no_entries", "function_of_the_old_kind", "compiled"),
        *("gradient_stopped_by_no_grad", "counts_in_a_tensor", "as_many_outputs_as_samples"),
    ],
)
def test_every_method_is_right(name: str) -> None:
    """Where plain passes and the methods have little in common."""
    case = by_name(name)
    found = verify(case.build(), case.inputs(3), samples=2)
    assert found.is_right, str(found)
    assert found.samples == 2
    assert {c.method for c in found.checks} == {"auto", "structured", "jacobian", "vector_product"}
    assert not [c for c in found.checks if c.refusal]
    assert str(found).count("\n") >= len(found.checks)


@pytest.mark.parametrize("output", ["full", "trace", "mean", "diagonal", "pseudo"])
def test_outputs(output: str) -> None:
    case = by_name("mlp")
    found = verify(case.build(), case.inputs(3), output=output)
    assert all(c.error < 1e-6 for c in found.checks)


def test_a_wrong_engine_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = METHODS["structured"]

    def wrong(*a):
        return {k: 1.001 * t for k, t in real(*a).items()}

    monkeypatch.setitem(METHODS, "structured", wrong)
    case = by_name("mlp")
    found = verify(case.build(), case.inputs(3))
    assert not found.is_right
    wrong = [c for c in found.checks if not c.is_right]
    assert {c.method for c in wrong} == {"structured"}
    assert "WRONG" in str(found)


def test_verify_refuses_what_is_no_batch() -> None:
    with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor"):
        verify(nn.Linear(2, 1), [1.0, 2.0])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.scale = nn.Parameter(torch.ones(64))
        self.last = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(torch.tanh(self.first(x))) * self.scale)
        return F.linear(h, self.last.weight)


def test_explain_has_one_line_for_each_parameter() -> None:
    model = Mixed()
    model.last.bias.requires_grad_(False)
    plan = explain(model, torch.randn(5, 64))
    lines = {line.parameter: line for line in plan.lines}
    assert list(lines) == ["scale", "first.weight", "first.bias", "last.weight"]
    assert (lines["first.weight"].rule, lines["first.weight"].uses) == ("LinearUse", 2)
    assert lines["first.weight"].contraction == "gram"
    # A bias of the same calls as its weight is one addition to the Gram matrix of the features.
    assert (lines["first.bias"].rule, lines["first.bias"].contraction) == ("BiasUse", "joined")
    assert lines["first.bias"].operations == 12.5 * 4
    assert lines["first.bias"].bytes_per_sample == 0
    # The same, and 2 · 64 · O for each of N samples to form it.
    assert (lines["scale"].rule, lines["scale"].contraction) == ("ScaleUse", "jacobian")
    assert lines["scale"].operations == 2 * 64 * 9 * 12.5 + 2 * 5 * 3 * 64
    assert lines["scale"].bytes_per_sample == 3 * 64 * 4
    # Gram matrices of T = 2 positions: A (64), B (3·64 numbers), T² (a + O² b + O²) per pair.
    assert lines["first.weight"].operations == 2 * 12.5 * 4 * (64 + 9 * 64 + 9)
    assert lines["first.weight"].bytes_per_sample == 2 * (64 + 3 * 64) * 4
    text = str(plan)
    assert all(name in text for name in lines)
    assert "5 samples, 3 outputs" in text


def test_explain_leaves_no_trace_and_checks_its_input() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    explain(model, torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    assert model[1].training
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="`x` must be a batch"):
        explain(model, torch.randn(0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made_inside", [False, True])
def test_verify_in_inference_mode(dtype: torch.dtype, made_inside: bool) -> None:
    """Also of a network that was made there, whose parameters autograd does not follow."""
    with torch.inference_mode(made_inside):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    with torch.inference_mode():
        found = verify(net, torch.randn(3, 3, dtype=dtype))
    assert found.is_right, str(found)
    assert not any(c.refusal for c in found.checks), str(found)


@pytest.mark.parametrize("output", ["full", "mean", "pseudo"])
def test_preconditioned(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's Jacobian is multiplied by √P, which a method must not leave out."""
    case = by_name("conv_groups_dilation")
    net, x = case.build(), case.inputs(3)
    p = {n: 0.5 + torch.rand_like(t) for n, t in net.named_parameters()}
    found = verify(net, x, output=output, precondition=p)
    assert all(c.error < 1e-6 for c in found.checks), str(found)
    real = METHODS["jacobian"]
    plain = lambda job, *a: real(replace(job, precondition=Precondition()), *a)  # noqa: E731
    monkeypatch.setitem(METHODS, "jacobian", plain)
    found = verify(net, x, output=output, precondition=p)
    assert {c.method for c in found.checks if not c.is_right} == {"jacobian"}


@pytest.mark.parametrize("function", [verify, explain])
@pytest.mark.parametrize("output", ["probed", "sum"])
def test_other_outputs_are_refused(function, output: str) -> None:
    with pytest.raises(ValueError, match=r"`output` must be one of 'full'.*'probed'"):
        function(by_name("mlp").build(), by_name("mlp").inputs(3), output=output)
