"""Gradient flow of general losses: cross-entropy, limits, and losses that cannot be solved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from predict_problems import coupled, draw, shared
from torch import Tensor, nn

from torch_ntk.memory._budget import _free_on_machine
from torch_ntk.predict import SingularKernelWarning, gradient_flow, gradient_flow_mse, one_hot
from torch_ntk.predict._flow_state import FlowState
from torch_ntk.predict._loss import OutputLoss

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def euler(h: float, time: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy, summed, by small steps in NumPy; its softmax is written out here."""
    p = shared()
    k, k_st = p.train_train.numpy(), p.test_train.numpy()
    f, g = p.f0_train.numpy().copy(), p.f0_test.numpy().copy()
    y = np.eye(2)[LABELS.numpy()]
    for _ in range(round(time / h)):
        exp = np.exp(f - f.max(1, keepdims=True))
        gradient = exp / exp.sum(1, keepdims=True) - y
        f -= h * (k @ gradient)
        g -= h * (k_st @ gradient)
    return torch.from_numpy(f), torch.from_numpy(g)


def test_cross_entropy_against_euler_steps() -> None:
    p = shared()
    predictor = gradient_flow(
        torch.nn.CrossEntropyLoss(reduction="sum"), p.train_train, LABELS, num_outputs=2
    )
    found = predictor(2.0, p.f0_train, p.f0_test, p.test_train)
    fine, coarse = euler(1e-4, 2.0), euler(2e-4, 2.0)
    for value, half, whole in zip(found, fine, coarse, strict=True):
        torch.testing.assert_close(value, half, rtol=0.0, atol=3e-4)
        # Without Euler's first-order error.
        torch.testing.assert_close(value, 2.0 * half - whole, rtol=0.0, atol=3e-7)


def test_labels_and_probabilities_are_one_loss() -> None:
    p = shared()
    times = torch.tensor([5.0, 0.0, 0.5, 5.0])
    by_label = gradient_flow(F.cross_entropy, p.train_train, LABELS, num_outputs=2)
    targets = one_hot(LABELS, 2)  # float32: the loss gets them in float64
    by_probability = gradient_flow(F.cross_entropy, p.train_train, targets)
    a = by_label(times, p.f0_train, p.f0_test, p.test_train)
    b = by_probability(times, p.f0_train, p.f0_test, p.test_train)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    assert torch.equal(a[0][1], p.f0_train)  # t = 0
    assert torch.equal(a[0][0], a[0][3])  # times in any order, repeated
    # The mean is the sum with time running N times slower.
    slow = gradient_flow(
        lambda f, y: F.cross_entropy(f, y, reduction="sum"), p.train_train, LABELS, num_outputs=2
    )
    torch.testing.assert_close(slow(5.0 / 6.0, p.f0_train)[0], a[0][0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["BDF", "Radau", "LSODA"])
def test_squared_error_is_the_closed_form(method: str) -> None:
    p = shared()
    times = torch.tensor([0.1, 1.0, 30.0, 1e5])

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (f - y).square().sum()

    solved = gradient_flow(loss, p.train_train, p.y, diag_reg=0.01, method=method)  # type: ignore[arg-type]
    exact = gradient_flow_mse(p.train_train, p.y, diag_reg=0.01)
    for a, b in zip(
        solved(times, p.f0_train, p.f0_test, p.test_train),
        exact(times, p.f0_train, p.f0_test, p.test_train),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_tolerances_are_in_the_units_of_the_outputs(scale: float) -> None:
    """Whatever those of the kernel, against which time runs."""
    p = shared()
    kernel = scale * p.train_train
    solved = gradient_flow(lambda f, y: 0.5 * (f - y).square().sum(), kernel, p.y, rtol=1e-6)
    exact = gradient_flow_mse(kernel, p.y)
    times = torch.tensor([0.5, 20.0], dtype=torch.float64) / scale
    torch.testing.assert_close(
        solved(times, p.f0_train)[0], exact(times, p.f0_train)[0], rtol=0.0, atol=1e-5
    )


def test_what_may_be_left_is_in_the_units_of_the_outputs() -> None:
    p = shared()
    solved = gradient_flow(
        lambda f, y: 0.5 * (f - y).square().sum(), 1e-8 * p.train_train, p.y, rtol=1e-9, atol=1e-3
    )
    torch.testing.assert_close(solved(None, p.f0_train)[0], p.y, rtol=0.0, atol=2e-3)


def test_tolerances_are_what_decides() -> None:
    p = shared()
    exact, _ = gradient_flow_mse(p.train_train, p.y)(2.0, p.f0_train)
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-10):
        solved = gradient_flow(
            lambda f, y: 0.5 * (f - y).square().sum(),
            p.train_train,
            p.y,
            rtol=tolerance,
            atol=tolerance,
        )
        errors.append(float((solved(2.0, p.f0_train)[0] - exact).abs().max()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-8


def test_the_limit_of_squared_error() -> None:
    p = shared()
    times = torch.tensor([float("inf"), 1.0])
    solved = gradient_flow(lambda f, y: 0.5 * (f - y).square().mean(), p.train_train, p.y)
    exact = gradient_flow_mse(p.train_train, p.y, reduction="mean")
    arguments = (p.f0_train, p.f0_test, p.test_train)
    for a, b in zip(solved(times, *arguments), exact(times, *arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(solved(None, *arguments), exact(None, *arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rtol", "atol"), [(1e-12, 1e-2), (1e-12, 1e-6), (1e-2, 1e-12)])
def test_what_is_left_to_go_is_compared_with_both_tolerances(rtol: float, atol: float) -> None:
    """Of a squared error with a definite kernel all of f - y is left."""
    p = shared()
    columns, zeros = 100.0 * p.f0_train, torch.zeros_like(p.f0_train)
    modes = gradient_flow_mse(p.train_train, p.y)._modes
    layout = modes.layout
    loss = OutputLoss(lambda f, y: 0.5 * (f - y).square().sum(), p.y, layout)
    state = FlowState.of(modes, loss, columns, 1.0, 1.0)
    left = float((columns - p.y).abs().max())
    expected = left / (atol + rtol * float(columns.abs().max()))
    found = state.remaining(zeros.flatten().numpy(), 0.0, atol, rtol)
    assert found == pytest.approx(expected, rel=1e-8)


def test_rounding_in_flat_directions_is_no_slope() -> None:
    """½ fᵀLf with a graph's Laplacian L has no slope along constants, but rounding of f has.

    Conserved is 1ᵀK⁻¹f, as ḟ = -KLf: the limit is the constant with the value of f0 in it.
    """
    p = shared(o=1)
    weights = draw(6, 6, seed=7).square()  # with any others the gradient may be 0 to the last digit
    adjacency = (weights + weights.T).fill_diagonal_(0.0)
    laplacian = adjacency.sum(1).diag() - adjacency
    f0 = 1e6 + p.f0_train
    predictor = gradient_flow(
        lambda f, y: 0.5 * (f * (laplacian @ f)).sum(),
        p.train_train,
        torch.zeros_like(f0),
        rtol=1e-12,
        atol=1e-6,
        max_evaluations=5000,
    )
    conserved = torch.linalg.solve(p.train_train, torch.ones(6, 1, dtype=torch.float64))
    constant = (conserved * p.f0_train).sum() / conserved.sum()
    found, _ = predictor(None, f0)
    torch.testing.assert_close(found - 1e6, constant.expand(6, 1), rtol=0.0, atol=1e-5)


def test_a_small_slope_without_curvature_has_no_limit() -> None:
    p = shared(n=3)
    predictor = gradient_flow(
        lambda f, y: 0.5 * f[:, 0].square().sum() + 1e-10 * f[:, 1].sum(), p.train_train, p.y
    )
    with pytest.raises(ValueError, match=r"a limit that is not reached .* without curvature"):
        predictor(None, p.f0_train)


def test_the_limit_of_soft_labels_reproduces_them() -> None:
    p = shared()
    soft = draw(6, 2, seed=9).softmax(1)
    predictor = gradient_flow(F.cross_entropy, p.train_train, soft)
    f_train, _ = predictor(None, p.f0_train)
    torch.testing.assert_close(f_train.softmax(1), soft, rtol=1e-7, atol=1e-7)
    # Already there: nothing moves.
    again, _ = predictor(None, soft.log())
    torch.testing.assert_close(again, soft.log(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_cross_entropy_on_labels_has_no_limit(scale: float) -> None:
    p = shared(n=3)

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return scale * F.cross_entropy(f, y)

    predictor = gradient_flow(loss, p.train_train, LABELS[:3], num_outputs=2)
    text = (
        "`t` must be finite for a loss without a finite minimum; got a limit that is not reached "
        ".* Cross-entropy on labels has no limit"
    )
    with pytest.raises(ValueError, match=text):
        predictor(None if scale == 1.0 else torch.tensor([1.0, float("inf")]), p.f0_train)


def test_a_singular_kernel_keeps_what_it_cannot_move() -> None:
    p = shared(n=6, features=4)
    soft = draw(6, 2, seed=9)
    arguments = (p.f0_train, p.f0_test, p.test_train)
    solved = gradient_flow(lambda f, y: 0.5 * (f - y).square().sum(), p.train_train, soft)
    exact = gradient_flow_mse(p.train_train, soft)
    for a, b in zip(solved(3.0, *arguments), exact(3.0, *arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    with pytest.warns(SingularKernelWarning, match="numerical rank is 4 of 6"):
        found = solved(None, *arguments)
    with pytest.warns(SingularKernelWarning, match="numerical rank is 4 of 6"):
        expected = exact(None, *arguments)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_number_of_outputs_may_be_that_of_the_start() -> None:
    p = shared()
    told = gradient_flow(F.cross_entropy, p.train_train, LABELS, num_outputs=2)
    untold = gradient_flow(F.cross_entropy, p.train_train, LABELS)
    arguments = (3.0, p.f0_train, p.f0_test, p.test_train)
    for a, b in zip(told(*arguments), untold(*arguments), strict=True):
        assert torch.equal(a, b)
    assert "any number of outputs" in repr(untold)


def test_what_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = shared()
    predictor = gradient_flow(F.mse_loss, p.train_train, p.y)

    class Little:
        available = 6 * 8 * 12**2 - 1

    monkeypatch.setattr("psutil.virtual_memory", Little)
    _free_on_machine.cache_clear()  # what it knows of the last 50 ms
    with pytest.raises(ValueError, match=r"got N·O = 12, which takes about .* free\. Use fewer"):
        predictor(1.0)
    _free_on_machine.cache_clear()


def test_binary_outputs_without_an_axis() -> None:
    p = shared(o=1)
    y = (p.y[:, 0] > 0).double()
    predictor = gradient_flow(F.binary_cross_entropy_with_logits, p.train_train, y)
    f_train, f_test = predictor(torch.tensor([1.0, 100.0]), k_test_train=p.test_train)
    assert f_train.shape == (2, 6)
    assert f_test is not None
    assert f_test.shape == (2, 3)
    assert torch.equal(f_train[1] > 0, y > 0.5)


BAD: dict[str, tuple[Callable[[Tensor, Tensor], object], type[Exception], str]] = {
    "a vector": (
        lambda f, y: (f - y).square().sum(1), ValueError, r"scalar.*shape \(4,\).*Reduce it"
    ),
    "one element": (lambda f, y: f.sum().reshape(1), ValueError, r"scalar.*shape \(1,\)"),
    "a number": (lambda f, y: 3.0, TypeError, r"`loss` must be .*scalar.*got the value 3\.0"),
    "integers": (lambda f, y: f.argmax(), TypeError, "scalar.*int64"),
    "constant": (lambda f, y: (y - y).sum(), ValueError, "does not depend on f"),
    "detached": (lambda f, y: (f - y).square().sum().detach(), ValueError, "does not depend on f"),
    "not finite": (lambda f, y: (f - f - 1).log().sum(), ValueError, "finite where training star"),
    "infinite slope": (lambda f, y: f.abs().sqrt().sum(), ValueError, "not finite at t = 0"),
    "infinite curvature": (
        lambda f, y: f.abs().pow(1.5).sum(), ValueError, "second derivative that is not finite"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_losses_that_are_none(name: str) -> None:
    loss, error, text = BAD[name]
    p = coupled()
    with pytest.raises(error, match=text):
        gradient_flow(loss, p.train_train, p.y)(1.0)  # type: ignore[arg-type]


CROSS_ENTROPIES = [
    F.cross_entropy,
    nn.CrossEntropyLoss(),
    partial(F.cross_entropy, reduction="sum"),
]


@pytest.mark.parametrize("loss", CROSS_ENTROPIES, ids=["function", "module", "partial"])
def test_labels_that_are_no_class_are_refused(loss: Any) -> None:
    p = shared()
    words = "`y` must be labels from 0 to 1, as there are 2 outputs; got 2 among them"
    with pytest.raises(ValueError, match=words):  # as soon as the number of outputs is known
        gradient_flow(loss, p.train_train, LABELS + 1, num_outputs=2)
    with pytest.raises(ValueError, match=words):
        gradient_flow(loss, p.train_train, LABELS + 1)(1.0, p.f0_train)
    with pytest.raises(ValueError, match=r"`y` must be class labels \[6\] in an integer dtype"):
        gradient_flow(loss, p.train_train, LABELS.double())


@pytest.mark.parametrize("loss", CROSS_ENTROPIES, ids=["function", "module", "partial"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_of_any_integer_dtype(loss: Any, dtype: torch.dtype) -> None:
    p = shared()
    expected, _ = gradient_flow(loss, p.train_train, LABELS, num_outputs=2)(1.0)
    found, _ = gradient_flow(loss, p.train_train, LABELS.to(dtype), num_outputs=2)(1.0)
    assert torch.equal(found, expected)


def test_a_label_that_is_ignored_does_not_move_its_output() -> None:
    p = shared()
    kernel = torch.eye(6, dtype=torch.float64)
    labels = LABELS.clone()
    for ignored, loss in (
        (-100, F.cross_entropy),
        (7, partial(F.cross_entropy, ignore_index=7)),
        (-1, nn.CrossEntropyLoss(ignore_index=-1)),
    ):
        labels[3] = ignored
        found, _ = gradient_flow(loss, kernel, labels, num_outputs=2)(1.0, p.f0_train)
        moved = (found - p.f0_train).abs().amax(1) > 1e-3
        assert moved.tolist() == [True, True, True, False, True, True]


def test_an_error_of_the_loss_is_told_with_what_it_was_given() -> None:
    p = shared()
    words = (
        r"`loss` must be a function .* takes these .*; got one that raises IndexError \(.*out of "
        r"bounds.*f is a float64 tensor of shape \(6, 2\).* y a int64 tensor of shape \(6,\)"
    )
    predictor = gradient_flow(
        lambda f, y: F.nll_loss(f.log_softmax(1), y), p.train_train, LABELS + 1, num_outputs=2
    )
    with pytest.raises(ValueError, match=words) as caught:
        predictor(1.0)
    assert isinstance(caught.value.__cause__, IndexError)


@pytest.mark.parametrize("method", ["BDF", "LSODA"])
def test_a_loss_with_a_corner_is_reported(method: str) -> None:
    """|f - y| drives f into its corner, where no step is small enough."""
    p = shared(features=200)
    predictor = gradient_flow(F.l1_loss, p.train_train, p.y, method=method, max_evaluations=2000)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"The {method} solver .*twice differentiable"):
        predictor(1000.0)


def test_the_evaluations_are_limited() -> None:
    p = shared()
    predictor = gradient_flow(F.mse_loss, p.train_train, p.y, max_evaluations=10)
    with pytest.raises(RuntimeError, match="more than `max_evaluations`=10"):
        predictor(10.0)


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    p = shared()
    gradient_flow(F.mse_loss, p.train_train, p.y)(10.0)
    assert capsys.readouterr().err == ""
    shown = gradient_flow(F.mse_loss, p.train_train, p.y, progress=True)
    shown(10.0)
    assert "t = 10 of 10" in capsys.readouterr().err
    shown(None)
    assert "step" in capsys.readouterr().err
