"""Every block of samples is compared with a plain backward pass, and what is wrong is mended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import ntk_loop, reduced, relative_error
from torch import Tensor, nn

from torch_ntk import MLP, NTKOperator, empirical_ntk, verify
from torch_ntk._functional import PlainModel, model_function, quiet
from torch_ntk.empirical import _checked_blocks
from torch_ntk.empirical._job import KernelJob
from torch_ntk.empirical.checksum import _block_check, _signed_sums, plain_jacobians
from torch_ntk.empirical.inspect import inspect_forward
from torch_ntk.empirical.methods import _jacobian
from torch_ntk.empirical.rules import RULES
from torch_ntk.empirical.rules._linear import LinearUse
from torch_ntk.empirical.structured import _kernel
from torch_ntk.empirical.structured._cotangents import Cotangents


class WrongFeatures(LinearUse):
    def features(self, source: Tensor) -> Tensor:
        return super().features(source) * 1.001


class WrongCotangents(LinearUse):
    def cotangents(self, b: Tensor) -> Tensor:
        return super().cotangents(b).flip(4)


class WrongWeight(LinearUse):
    """A rule that takes x @ W for x @ Wᵀ."""

    def __init__(self, source: Tensor, weight: Tensor) -> None:
        super().__init__(source, weight)
        self.is_flipped = True

    def pack(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(1, self.inputs, self.units).transpose(1, 2)

    def unpack(self, jacobian: Tensor) -> Tensor:
        return jacobian.flip(3).flatten(2)


@pytest.mark.parametrize("width", [6, 80])  # formed gradients, and projected ones
@pytest.mark.parametrize("wrong", [WrongFeatures, WrongCotangents, WrongWeight])
def test_a_wrong_rule_is_found_out(
    wrong: type[LinearUse], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = MLP([4, width, width, 2]).double(), torch.randn(5, 4, dtype=torch.float64)
    expected = ntk_loop(model, x, x)
    monkeypatch.setitem(RULES, F.linear, lambda args, kwargs: wrong(args[0], args[1]))
    for output in ("full", "mean", "diagonal"):
        kernel = empirical_ntk(model, x, output=output)
        assert relative_error(kernel, reduced(expected, output)) < 1e-12
    parts = empirical_ntk(model, x[:3], x, by="parameter", batch_size=2)
    assert relative_error(sum(parts.values()), expected[:3]) < 1e-12
    unchecked = empirical_ntk(model, x, check=False)
    if wrong is WrongFeatures:  # the Gram matrices of the others are right
        assert relative_error(unchecked, expected) > 1e-4


@pytest.mark.parametrize("sample", [0, 2, 4])
def test_one_wrong_sample_is_found_out(sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _kernel.cotangents

    def wrong(*args: Any) -> Cotangents:
        found = real(*args)
        if found.of_calls:  # none is left when both weights are taken by loops
            found.of_calls[0][sample, 0] *= 1 + 1e-6
        return found

    model, x = MLP([4, 6, 2]).double(), torch.randn(5, 4, dtype=torch.float64)
    monkeypatch.setattr(_kernel, "cotangents", wrong)
    assert relative_error(empirical_ntk(model, x), ntk_loop(model, x, x)) < 1e-12


def test_a_wrong_jacobian_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _jacobian._batched

    def wrong(fn, x):
        outputs, found = real(fn, x)
        return outputs, {k: j * (1.01 if k == "2.weight" else 1.0) for k, j in found.items()}

    model, x = MLP([4, 6, 2]).double(), torch.randn(5, 4, dtype=torch.float64)
    looped = []
    plain = _checked_blocks.plain_jacobians
    monkeypatch.setattr(_jacobian, "_batched", wrong)
    monkeypatch.setattr(
        _checked_blocks,
        "plain_jacobians",
        lambda fn, x, names: (looped.append(tuple(names)), plain(fn, x, names))[1],
    )
    kernel = empirical_ntk(model, x, method="jacobian")
    assert relative_error(kernel, ntk_loop(model, x, x)) < 1e-12
    assert set(looped) == {("2.weight",)}  # the other parameters are right as they are


def test_what_even_loops_get_wrong_is_refused() -> None:
    class Coupled(nn.Module):
        """Each sample is shifted by the one before it, through a weight that is zero."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(4, 3), nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.gate * self.layer(x).roll(1, 0)

    model, x = Coupled().double(), torch.randn(5, 4, dtype=torch.float64)
    for options in ({}, {"method": "jacobian"}, {"batch_size": 1}, {"method": "vector_product"}):
        with pytest.raises(ValueError, match="one sample at a time"):
            empirical_ntk(model, x, **options)
    with pytest.raises(ValueError, match="one sample at a time"):
        NTKOperator(model, x)


def _badly_scaled(depth: int) -> nn.Module:
    """Outputs that are small differences of large numbers."""

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = MLP([6, *[32] * depth, 3]), MLP([6, *[32] * depth, 3])
            self.second.load_state_dict(self.first.state_dict())
            with torch.no_grad():
                for p in self.second.parameters():
                    p.mul_(1 + 1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * (self.first(1e3 * x) - self.second(1e3 * x))

    return Difference()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [1, 4, 12])
def test_rounding_is_no_mistake(
    depth: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a right kernel is taken by loops")

    monkeypatch.setattr(_checked_blocks, "plain_jacobians", fail)
    torch.manual_seed(depth)
    model, x = _badly_scaled(depth).to(dtype), torch.randn(9, 6).to(dtype)
    for method in ("structured", "jacobian"):
        kernel = empirical_ntk(model, x, output="mean", method=method)
        assert bool(kernel.isfinite().all())
    empirical_ntk(model, x.double(), output="mean", dtype=torch.float64)


def test_every_call_draws_other_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    real = _signed_sums.SignedSums.__init__

    def noted(self, u: Tensor) -> None:
        drawn.append(u)
        real(self, u)

    monkeypatch.setattr(_signed_sums.SignedSums, "__init__", noted)
    model, x = MLP([4, 6, 2]), torch.randn(20, 4)
    before = torch.get_rng_state()
    empirical_ntk(model, x)
    empirical_ntk(model, x)
    assert len(drawn) == 2
    assert all(bool((u.abs() >= 0.5).all()) for u in drawn)
    assert not torch.equal(*drawn)
    assert torch.equal(before, torch.get_rng_state())


def test_switched_off_it_costs_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("compared")

    monkeypatch.setattr(_checked_blocks.BlockCheck, "verify", fail)
    model, x = MLP([4, 6, 2]), torch.randn(5, 4)
    empirical_ntk(model, x, check=False)
    empirical_ntk(model, x, check=False, method="jacobian")
    with pytest.raises(TypeError, match="`check` must be True or False"):
        empirical_ntk(model, x, check=1)


class OfOneImage(nn.Module):
    """The gradient of the normalization comes with its channels innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.InstanceNorm2d(2, affine=True), nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).permute(0, 2, 3, 1).flatten(1))


def _of_one_image() -> tuple[nn.Module, Tensor, Tensor]:
    """The network, two images, and their kernel with the normalization written out."""
    torch.manual_seed(3)
    net = OfOneImage().double()
    with torch.no_grad():
        net.norm.weight.normal_()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)

    def written_out(params: dict[str, Tensor], x: Tensor) -> Tensor:
        centered = x - x.mean((2, 3), keepdim=True)
        h = centered / (centered.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        h = h * params["norm.weight"].view(2, 1, 1) + params["norm.bias"].view(2, 1, 1)
        h = h.permute(0, 2, 3, 1).flatten(1)
        return h @ params["head.weight"].T + params["head.bias"]

    params = dict(net.named_parameters())
    return net, x, empirical_ntk(written_out, x, params=params, method="jacobian")


@pytest.mark.parametrize("method", ["structured", "jacobian", "vector_product"])
def test_an_operation_whose_plain_gradient_is_wrong_for_one_image(method: Any) -> None:
    """That of torch's `instance_norm`; written out, it is right."""
    net, x, expected = _of_one_image()
    found = empirical_ntk(net, x, method=method, batch_size=1)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_the_operator_and_verify_know_of_that_operation() -> None:
    net, x, expected = _of_one_image()
    for rows in (x, x[:1]):  # checked by halves, which are single images here
        n = len(rows)
        found = NTKOperator(net, rows) @ torch.ones(2 * n, dtype=torch.float64)
        right = expected[:n, :n].sum((1, 3)).flatten()
        assert torch.allclose(found, right, rtol=1e-10, atol=1e-10)
    assert verify(net, x).is_right


@pytest.mark.parametrize("factor", [1.005, 1.04])
def test_what_may_be_rounding_is_compared_with_roundings(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences of some percent in float32, of which ReLUs that change sides make as large."""

    class Off(LinearUse):
        def features(self, source: Tensor) -> Tensor:
            return super().features(source) * factor

    looked: list[bool] = []
    own = _block_check.BlockCheck._is_rounding

    def noting(check: Any, compared: Any) -> bool:
        looked.append(own(check, compared))
        return looked[-1]

    torch.manual_seed(0)
    model, x = MLP([4, 80, 80, 2]), torch.randn(5, 4)
    expected = ntk_loop(model.double(), x.double(), x.double())
    model.float()
    monkeypatch.setattr(_block_check.BlockCheck, "_is_rounding", noting)
    monkeypatch.setitem(RULES, F.linear, lambda args, kwargs: Off(args[0], args[1]))
    before = torch.get_rng_state()
    kernel = empirical_ntk(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert looked
    assert not any(looked)
    assert relative_error(kernel.double(), expected) < 1e-5


def test_a_kink_that_roundings_decide_is_one_of_rounding() -> None:
    """One of 400 units is 0 but for rounding: its ReLU is on either side."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 400), nn.ReLU(), nn.Linear(400, 2))
    with torch.no_grad():
        net[0].bias.zero_()
        net[0].weight[0, 25:] = -net[0].weight[0, :25]
        net[2].weight[:, 0] *= 0.5
    x = torch.randn(6, 25).repeat(1, 2)
    fn = model_function(net)
    with quiet(net, torch.device("cpu")):
        job = KernelJob(
            fn, fn.input("x", x), None, "mean", inspect_forward(fn, "x", fn.input("x", x)), {}
        )
        outputs, found = plain_jacobians(fn, job.x1, list(fn.params))
        judged = []
        for _ in range(12):  # by other random weights, of which a few see too much of the kink
            check = _block_check.BlockCheck(job, job.x1, 0, 6)
            check.add_outputs(outputs)
            for name, j in found.items():
                check.sums.add_jacobian(name, 0, j * 1.002 if name == "0.weight" else j)
            compared = check._compared(fn.plain)
            assert "0.weight" in compared.wrong
            judged.append(check._is_rounding(compared))
    assert sum(judged) >= 6


class _WrongLater(WrongFeatures):
    """Right for the first samples of a block only."""

    def features(self, source: Tensor) -> Tensor:
        is_late = source.reshape(len(source), -1)[:, :1] > 0.5
        right = LinearUse.features(self, source)
        return torch.where(is_late.reshape(-1, *[1] * (right.ndim - 1)), 1.001 * right, right)


def test_groups_of_pieces_are_compared_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large samples few are compared at once, and every group of them is."""
    model, x = MLP([4, 80, 80, 2]).double(), torch.rand(7, 4, dtype=torch.float64) * 0.5
    x[6, 0] = 0.9  # in the last group alone, which a piece of one sample has joined
    expected = ntk_loop(model, x, x)
    seen: list[int] = []
    own = _block_check.BlockCheck.verify

    def noting(check: Any, in_double: Any) -> None:
        seen.append(len(check.x))
        own(check, in_double)

    monkeypatch.setattr(_block_check, "_AT_ONCE", 1)
    monkeypatch.setattr(_block_check, "_OF_PARAMETERS", 0)
    monkeypatch.setattr(_block_check.BlockCheck, "verify", noting)
    monkeypatch.setattr(_kernel.StructuredMethod, "sizes", lambda self: (7, 1))
    assert relative_error(empirical_ntk(model, x), expected) < 1e-12
    assert seen == [2, 2, 3]
    monkeypatch.setitem(RULES, F.linear, lambda args, kwargs: _WrongLater(args[0], args[1]))
    assert relative_error(empirical_ntk(model, x), expected) < 1e-12


def test_few_kinks_of_many_are_ones_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400,000 ReLUs ten roundings turn a few, as one does of those of a large network."""
    own = PlainModel.with_rounding
    monkeypatch.setattr(PlainModel, "with_rounding", lambda self, times=1: own(self, 10 * times))
    torch.manual_seed(0)
    layers = [m for _ in range(12) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, 32, 1), *layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 2))
    for layer in (m for m in net if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(layer.weight)
    x = torch.randn(16, 1, 8, 8)
    fn = model_function(net)
    with quiet(net, torch.device("cpu")):
        given = fn.input("x", x)
        job = KernelJob(fn, given, None, "mean", inspect_forward(fn, "x", given), {})
        judged = {1.0: 0, 1.045: 0}  # by how much the first weight is off as well
        for factor in judged:
            for _ in range(10):
                check = _block_check.BlockCheck(job, job.x1, 0, 16, close=1e-4)
                other = check._expected(fn.plain.with_rounding())
                check.add_outputs(other.outputs)
                for name, gradient in other.gradient.items():
                    check.sums.add_jacobian(name, 0, gradient.new_zeros(16, 2, 1))
                    check.sums.sums[name].total = gradient.reshape(-1) * (
                        factor if name == "0.weight" else 1.0
                    )
                compared = check._compared(fn.plain)
                assert compared.wrong or factor == 1.0
                judged[factor] += not compared.wrong or check._is_rounding(compared)
    assert judged[1.0] >= 8
    assert judged[1.045] <= 4


def test_what_one_block_shows_of_rounding_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_block_check, "_AT_ONCE", 1)
    monkeypatch.setattr(_block_check, "_OF_PARAMETERS", 0)
    monkeypatch.setattr(_kernel.StructuredMethod, "sizes", lambda self: (8, 1))
    passes: list[float] = []
    own = PlainModel.with_rounding

    def noting(self: PlainModel, times: float = 1.0) -> PlainModel:
        passes.append(times)
        return own(self, 1e5 * times)  # so that all differences are no more than these

    class Off(LinearUse):
        def features(self, source: Tensor) -> Tensor:
            return super().features(source) * 1.005

    monkeypatch.setattr(PlainModel, "with_rounding", noting)
    monkeypatch.setitem(RULES, F.linear, lambda args, kwargs: Off(args[0], args[1]))
    torch.manual_seed(0)
    empirical_ntk(MLP([4, 80, 80, 2]), torch.randn(8, 4))
    assert passes == [16]  # of the first of four groups
