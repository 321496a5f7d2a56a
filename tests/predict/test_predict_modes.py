"""Precision, modes of the caller, and traces: none are left, and none matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from predict_problems import Problem, coupled, shared
from torch import Tensor

from torch_ntk.predict import (
    KernelPair,
    ensemble_mse,
    gp_inference,
    gradient_descent_mse,
    gradient_flow,
    gradient_flow_mse,
    max_learning_rate,
)


def _starts(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return p.f0_train, p.f0_test, p.test_train


TIMES = torch.tensor([0.0, 2.0, 10.0])
CALLS: dict[str, Callable[[Problem], Any]] = {
    "gradient_flow_mse": lambda p: gradient_flow_mse(p.train_train, p.y, diag_reg=0.01)(
        TIMES, *_starts(p)
    ),
    "gradient_descent_mse": lambda p: gradient_descent_mse(p.train_train, p.y, 0.1, 0.9)(
        TIMES, *_starts(p)
    ),
    "gradient_flow": lambda p: gradient_flow(F.mse_loss, p.train_train, p.y)(TIMES, *_starts(p)),
    "gp_inference": lambda p: gp_inference(p.train_train, p.y)(p.test_train, p.test_test),
    "ensemble_mse": lambda p: ensemble_mse(KernelPair(p.train_train, p.train_train), p.y)(
        TIMES, KernelPair(p.test_train, p.test_train), p.test_test
    ),
    "max_learning_rate": lambda p: (
        torch.tensor(max_learning_rate(p.train_train), dtype=torch.float64).to(p.y.dtype),
    ),
}
every_call = pytest.mark.parametrize("name", CALLS)
FIELDS = ("train_train", "test_train", "test_test", "y", "f0_train", "f0_test")


def changed(
    p: Problem, how: Callable[[Tensor], Tensor], fields: tuple[str, ...] = FIELDS
) -> Problem:
    return Problem(**{f: how(v) if f in fields else v for f, v in vars(p).items()})


def check(found: Any, expected: Any, tolerance: float = 1e-13) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert not a.requires_grad
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@every_call
@pytest.mark.parametrize("problem", [shared, coupled])
def test_no_trace_is_left(name: str, problem: Callable[[], Problem]) -> None:
    p = problem()
    expected = CALLS[name](p)
    leaf = changed(copy.deepcopy(p), lambda t: t.requires_grad_())
    versions = [v._version for v in vars(leaf).values()]
    rng = torch.get_rng_state()
    check(CALLS[name](leaf), expected)
    assert [v._version for v in vars(leaf).values()] == versions
    assert all(v.grad is None for v in vars(leaf).values())
    for field, value in vars(leaf).items():
        assert torch.equal(value, getattr(p, field)), field
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@every_call
def test_results_do_not_depend_on_the_caller_s_modes(name: str) -> None:
    p = shared()
    expected = CALLS[name](p)
    with torch.no_grad():
        check(CALLS[name](p), expected)
    with torch.inference_mode():
        inside = changed(p, torch.clone)
        check(CALLS[name](inside), expected)
    check(CALLS[name](inside), expected)  # made inside, used outside
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(CALLS[name](p), expected)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        check(CALLS[name](p), expected)
    finally:
        torch.set_default_dtype(before)
    check(CALLS[name](changed(p, lambda t: t.repeat_interleave(2, -1)[..., ::2])), expected)


@every_call
def test_float32_in_float32_out_float64_inside(name: str) -> None:
    rounded = changed(shared(), lambda t: t.float().double())
    found = CALLS[name](changed(rounded, lambda t: t.float()))
    assert all(value.dtype == torch.float32 for value in found)
    # The same numbers in, so the same out but for the last rounding.
    check(found, CALLS[name](rounded), 1e-6)


@every_call
def test_the_widest_dtype_wins(name: str) -> None:
    if name == "max_learning_rate":
        return
    p = changed(shared(), lambda t: t.float().double())
    for field in ("train_train", "y"):
        mixed = changed(changed(p, lambda t: t.float()), lambda t: t.double(), (field,))
        found = CALLS[name](mixed)
        assert all(value.dtype == torch.float64 for value in found)
        check(found, CALLS[name](p), 1e-12)


@pytest.mark.parametrize("name", ["gradient_flow_mse", "gradient_descent_mse", "gradient_flow"])
def test_what_stands_still_or_is_left_out(name: str) -> None:
    p = shared()
    makers: dict[str, Callable[[], Any]] = {
        "gradient_flow_mse": lambda: gradient_flow_mse(p.train_train, p.y),
        "gradient_descent_mse": lambda: gradient_descent_mse(p.train_train, p.y, 0.1, 0.5),
        "gradient_flow": lambda: gradient_flow(F.mse_loss, p.train_train, p.y),
    }
    predictor = makers[name]()
    f_train, f_test = predictor(0, *_starts(p))
    assert torch.equal(f_train, p.f0_train)
    assert torch.equal(f_test, p.f0_test)
    at_rest, _ = predictor(5, p.y)  # y is where nothing moves
    torch.testing.assert_close(at_rest, p.y, rtol=1e-14, atol=1e-14)
    alone, nothing = predictor(3)
    assert nothing is None
    zeros = torch.zeros_like(p.y)
    torch.testing.assert_close(alone, predictor(3, zeros)[0], rtol=0.0, atol=0.0)
    _, test_alone = predictor(3, k_test_train=p.test_train)
    _, from_zero = predictor(3, zeros, torch.zeros_like(p.f0_test), p.test_train)
    torch.testing.assert_close(test_alone, from_zero, rtol=0.0, atol=0.0)


def test_a_predictor_does_not_change_with_the_tensors_it_was_made_from() -> None:
    p = shared()
    for make in (
        lambda k, y: gradient_flow_mse(k, y),
        lambda k, y: gradient_flow(F.mse_loss, k, y),
    ):
        k, y = p.train_train.clone(), p.y.clone()
        predictor = make(k, y)
        expected = predictor(1.0)[0]
        k.zero_()
        y.zero_()
        assert torch.equal(predictor(1.0)[0], expected)


def test_one_decomposition_serves_all_times(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    eigh = torch.linalg.eigh

    def counted(matrix: Tensor) -> Any:
        sizes.append((matrix.shape, matrix.dtype))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    p = shared()
    predictor = gradient_descent_mse(p.train_train.float(), p.y, 0.1, 0.9)
    predictor(torch.arange(100), *_starts(p))
    for t in (1, 5, None):
        predictor(t, *_starts(p))
    assert sizes == [((6, 6), torch.float64)]


def test_times_of_any_dtype() -> None:
    p = shared()
    predictor = gradient_flow_mse(p.train_train, p.y)
    expected, _ = predictor(2.0)
    for t in (2, torch.tensor(2), torch.tensor(2.0, dtype=torch.float16)):
        assert torch.equal(predictor(t)[0], expected)
    assert torch.equal(predictor(torch.tensor([2], dtype=torch.int32))[0], expected[None])


def test_representations_say_what_they_hold() -> None:
    p, c = shared(), coupled()
    assert repr(gradient_descent_mse(p.train_train, p.y, 0.1, 0.9)) == (
        "MSEPredictor(gradient descent, 6 samples, 2 outputs, kernel shared by the outputs, "
        "rank 6 of 6, lr=0.1, momentum=0.9)"
    )
    assert "gradient flow, 4 samples, 3 outputs, full" in repr(
        gradient_flow_mse(c.train_train, c.y)
    )
    assert "rank 12 of 12, BDF" in repr(gradient_flow(F.mse_loss, c.train_train, c.y))
    assert "GaussianProcess(6 samples" in repr(gp_inference(p.train_train, p.y))
    pair = KernelPair(p.train_train, p.train_train)
    assert "EnsemblePredictor('ntk', 6 samples" in repr(ensemble_mse(pair, p.y))
