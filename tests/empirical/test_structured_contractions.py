"""Every order of contraction, each in pieces and whole, and the choice between them."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case, by_name
from oracles import contract_full, reduced, relative_error
from plans import OUTPUTS, method_of, plan_of
from small_pieces import in_pieces
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk.empirical.contract import _jacobian_pieces
from torch_ntk.empirical.rules import RULES
from torch_ntk.empirical.structured import _kernel, _plan
from torch_ntk.empirical.structured._cost import contraction_costs


def forced(contraction: str):
    """Chooses that order of contraction wherever the output has it."""

    def choose(found):
        return found.get(contraction, found["gram"])

    return choose


def no_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Jacobian is small enough to be joined with others."""
    for module in (_plan, _kernel):
        monkeypatch.setattr(module, "SMALL", 0)


@pytest.mark.parametrize("contraction", ["gram", "features", "jacobian"])
@pytest.mark.parametrize("case", [c for c in CASES if not c.slow], ids=lambda c: c.name)
def test_every_order_of_contraction(
    case: Case, contraction: str, monkeypatch: pytest.MonkeyPatch, oracle
) -> None:
    monkeypatch.setattr(_plan, "cheapest", forced(contraction))
    in_pieces(monkeypatch, chunk=512, again=512, columns=512, features=1)
    no_joined(monkeypatch)
    j1, j2 = oracle(case)
    model, place = case.build(), CASES.index(case) + len(contraction)
    # Two outputs in turn: each of them with each order on many models.
    for output in (OUTPUTS[place % 5], OUTPUTS[(place + 2) % 5]):
        expected = reduced(contract_full(j1, j2), output)
        options = {"output": output, "method": "structured", **case.options}
        kernel = empirical_ntk(model, case.inputs(4), case.inputs(3, 1), **options)
        assert relative_error(kernel, expected) < 1e-10
        if case.is_one_input:
            continue  # both together are another graph
        both = case.batch(torch.cat([case.numbers(4), case.numbers(3, 1)]))
        kernel = empirical_ntk(model, both, **options)  # each Jacobian is contracted once
        assert relative_error(kernel[:4, 4:], expected) < 1e-10
        assert torch.equal(
            kernel, kernel.transpose(0, 1).mT if output == "full" else kernel.transpose(0, 1)
        )


@pytest.mark.parametrize("accumulate", [torch.float64, None])
@pytest.mark.parametrize("output", OUTPUTS)
def test_blocks_of_columns(output, accumulate, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.wide = nn.Conv1d(4, 6, 2, padding=1)
            self.last = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.conv(torch.tanh(self.conv(x))))
            return self.last(torch.tanh(self.wide(x.flatten(2))).mean(2))

    model, x = Shared(), torch.randn(5, 4, 6, 6)
    monkeypatch.setattr(_plan, "cheapest", forced("jacobian"))
    options = {"output": output, "method": "structured", "accumulate": accumulate}
    expected = empirical_ntk(model, x, **options)
    no_joined(monkeypatch)
    monkeypatch.setattr(_plan.Plan, "_late_size", lambda *_: 0)  # every one is late
    made = []
    real = _jacobian_pieces.Unformed.fill

    def fill(self, *a):
        made.append(a[1:])
        real(self, *a)

    monkeypatch.setattr(_jacobian_pieces.Unformed, "fill", fill)
    for size in (1, 300, 3000, 10**6):
        in_pieces(monkeypatch, columns=size, features=1)
        kernel = empirical_ntk(model, x, **options)
        tolerance = 1e-5 if kernel.dtype == torch.float32 else 1e-6
        assert relative_error(kernel, expected) < tolerance
    assert len(set(made)) > 4


def test_gram_matrices_are_taken_for_few_positions_and_jacobians_for_many() -> None:
    dense = MLP([64, 64, 64, 5])
    assert all(plan_of(dense, torch.randn(8, 64)).is_gram(n) for n in ("0.weight", "2.weight"))
    image = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 2))
    plan = plan_of(image, torch.randn(8, 2, 8, 8))
    assert not plan.is_gram("0.weight")
    assert plan.is_gram("2.weight")


class MaskedLast(nn.Module):
    """A last layer whose cotangents are the identity for some samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.tanh(self.first(x)))
        return torch.where(x[:, :1] > 0, y, 2 * y)


@pytest.mark.parametrize("output", OUTPUTS)
def test_identity_cotangents_of_some_samples_are_not_taken_for_all(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MaskedLast().double()
    x = torch.randn(6, 3, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, 1, 1, -1, -1, -1])
    expected = reduced(empirical_ntk(model, x, method="jacobian"), output)
    for size in (None, 3, 2):
        kernel = empirical_ntk(model, x, output=output, method="structured", batch_size=size)
        assert relative_error(kernel, expected) < 1e-12
    kernel = empirical_ntk(model, x[:3], x[3:], output=output, method="structured")
    assert relative_error(kernel, expected[:3, 3:]) < 1e-12
    in_pieces(monkeypatch, backward=1)  # backward passes of two samples, put together
    kernel = empirical_ntk(model, x, output=output, method="structured")
    assert relative_error(kernel, expected) < 1e-12


@pytest.mark.parametrize("output", OUTPUTS)
def test_halves_are_mirrored(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pieces(monkeypatch, rows=1)
    case = by_name("mlp")
    model, x = case.build(), case.inputs(21)
    kernel = empirical_ntk(model, x, output=output, method="structured")
    expected = empirical_ntk(model, x, x.clone(), output=output, method="structured")
    assert relative_error(kernel, expected) < 1e-13
    mirrored = kernel.permute(1, 0, 3, 2) if kernel.ndim == 4 else kernel.transpose(0, 1)
    assert torch.equal(kernel, mirrored)


def test_few_positions_have_their_features_between_the_cotangents() -> None:
    late = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 16, 10))
    plan = plan_of(late, torch.randn(8, 32, 4, 4))
    assert plan.costs["0.weight"].contraction == "features"
    assert plan.biases == {"0.weight": "0.bias", "2.weight": "2.bias"}
    assert plan_of(late, torch.randn(8, 32, 4, 4), "mean").is_gram("2.weight")


@pytest.mark.parametrize("t", [1, 2, 5, 40])
@pytest.mark.parametrize("o", [1, 3, 10])
def test_operations_are_those_of_the_formulas(t: int, o: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(4, 7)), torch.randn(o, 4 * t)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.w).flatten(1) @ self.v.T

    job = method_of(Net(), torch.randn(6, t, 7)).job
    use = plan_of(Net(), torch.randn(6, t, 7)).uses_of("w")[0]
    found = contraction_costs(job, use, t)
    assert found["gram"].operations == 2 * 18 * t * t * (7 + o * o * 4 + o * o)
    assert found["features"].operations == 2 * 18 * (t * t * (7 + o * 4) + t * o * o * 4)
    assert found["jacobian"].operations == 2 * 6 * t * o * 28 + 2 * 18 * o * o * 28
    mean = method_of(Net(), torch.randn(6, t, 7), "mean").job
    assert set(contraction_costs(mean, use, t)) == {"gram", "jacobian"}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("both", [True, False])
def test_no_positions_at_all(output: str, both: bool) -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x[:, 0]) + self.tokens(x[:, :0]).sum(1)

    model, x = Nothing().double(), torch.randn(3, 2, 4, dtype=torch.float64)
    options = {"output": output, "x2": x[:2] if both else None}
    kernel = empirical_ntk(model, x, method="structured", **options)
    assert relative_error(kernel, empirical_ntk(model, x, method="jacobian", **options)) < 1e-12


def test_blocks_are_of_even_sizes_that_multiply_fast() -> None:
    most = 2**23
    assert _jacobian_pieces._step(512, 1, most // 48, most) == 48
    assert _jacobian_pieces._step(100, 1, most // 48, most) == 40
    assert _jacobian_pieces._step(40, 1, most // 48, most) == 40
    assert _jacobian_pieces._step(128, 1, most // 22, most) == 16
    assert _jacobian_pieces._step(7, 64, 1, most) == 7
    assert _jacobian_pieces._step(0, 1, 1, most) == 1  # a weight without entries
    assert _jacobian_pieces._step(500, 64, most // 2, most) == 64


def test_patches_that_are_gathered_last_count_as_memory() -> None:
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 4, 10))
    plan = plan_of(net, torch.randn(8, 64, 2, 2))
    assert plan.is_late("0.weight")
    assert plan.largest_features() == 4 * 64 * 9
    assert plan.size("0.weight", 64 * 64 * 9, alone=True) == 4 * 64 + 10 * 4 * 64


def test_a_crop_does_not_keep_what_it_is_cut_from() -> None:
    (use,) = RULES[nn.functional.conv2d]((torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)), {})
    source = torch.randn(5, 1, 2, 40, 40)
    held = use.held(source[..., :4, :4])
    assert held.untyped_storage().nbytes() == 5 * 2 * 16 * 4
    assert use.held(source).data_ptr() == source.data_ptr()
