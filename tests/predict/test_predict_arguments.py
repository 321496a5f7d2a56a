"""What the predictions refuse, in the words that help."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from predict_problems import Problem, coupled, draw, matrix, shared
from torch import Tensor

from torch_ntk.predict import (
    gp_inference,
    gradient_descent_mse,
    gradient_flow,
    gradient_flow_mse,
    max_learning_rate,
)

P, C = shared(), coupled()
LABELS = torch.zeros(6, dtype=torch.int64)

# Everything that takes a train kernel and targets.
MAKERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "gradient_flow_mse": gradient_flow_mse,
    "gradient_descent_mse": lambda k, y: gradient_descent_mse(k, y, 0.1),
    "gradient_flow": lambda k, y: gradient_flow(F.mse_loss, k, y),
    "gp_inference": gp_inference,
}
PREDICTORS = ("gradient_flow_mse", "gradient_descent_mse", "gradient_flow")
of_kernels = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
of_predictors = pytest.mark.parametrize("make", [MAKERS[n] for n in PREDICTORS], ids=PREDICTORS)


def with_entry(tensor: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


def with_eigenvalue(k: Tensor, value: float) -> Tensor:
    """The kernel with its largest eigenvalue replaced."""
    values, vectors = torch.linalg.eigh(k)
    values[-1] = value
    changed = (vectors * values) @ vectors.T
    return 0.5 * (changed + changed.T)


KERNELS: dict[str, tuple[Tensor, type[Exception], str]] = {
    "asymmetric": (
        P.train_train + torch.eye(6).roll(1, 0),
        ValueError,
        r"symmetric to a relative tolerance of 1\.5e-08; got .*max\|A - Aᵀ\| = 1, which is 0\.\d+",
    ),
    "indefinite": (
        with_eigenvalue(P.train_train, -0.5),
        ValueError,
        r"semi-definite .*1 of 6 eigenvalues below -\S+; the smallest is -0\.5 .*diag_reg=1e-6",
    ),
    "NaN": (
        with_entry(P.train_train, (2, 3), math.nan),
        ValueError,
        r"must be finite; got 1 NaN and 0 infinite of 36 entries \(the first at index \(2, 3\)",
    ),
    "infinite": (
        with_entry(P.train_train, (0, 0), math.inf), ValueError, "0 NaN and 1 infinite of 36"
    ),
    "not square": (P.test_train, ValueError, r"a kernel of shape \[N, N\] or \[N, N, O, O\]"),
    "one axis": (P.y[:, 0], ValueError, r"a kernel of shape \[N, N\] or \[N, N, O, O\]"),
    "empty": (torch.zeros(0, 0), ValueError, "must be non-empty"),
    "per output": (torch.ones(6, 6, 2), ValueError, r"\[N, N, O\].*torch\.diag_embed"),
    "n i m j": (
        torch.ones(6, 2, 6, 2), ValueError, r"indexed \[n, i, m, j\]; use \.permute\(0, 2, 1, 3\)"
    ),
    "outputs first": (
        torch.ones(2, 2, 6, 6), ValueError, r"\[O, O, N, N\].*\.permute\(2, 3, 0, 1\)"
    ),
    "integers": (torch.eye(6, dtype=torch.int64), TypeError, "real floating-point numbers"),
    "complex": (torch.eye(6, dtype=torch.complex64), TypeError, "real floating-point numbers"),
    "sparse": (torch.eye(6).to_sparse(), TypeError, "a dense tensor"),
    "an array": (P.train_train.numpy(), TypeError, r"a torch\.Tensor"),  # type: ignore[dict-item]
    "meta": (torch.eye(6, device="meta"), TypeError, "a tensor with data"),
}  # fmt: skip


@of_kernels
@pytest.mark.parametrize("name", KERNELS)
def test_bad_train_kernels(make: Callable[[Tensor, Tensor], Any], name: str) -> None:
    kernel, error, text = KERNELS[name]
    with pytest.raises(error, match=text) as caught:
        make(kernel, P.y)
    assert "`k_train_train`" in str(caught.value)


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "outputs first"])
def test_bad_kernels_for_the_largest_step(name: str) -> None:
    kernel, error, text = KERNELS[name]
    with pytest.raises(error, match=text) as caught:
        max_learning_rate(kernel)
    assert str(caught.value).startswith("`k` must be ")


@of_kernels
def test_indefinite_full_kernels(make: Callable[[Tensor, Tensor], Any]) -> None:
    broken = with_eigenvalue(matrix(C.train_train), -0.3)
    kernel = broken.reshape(4, 3, 4, 3).permute(0, 2, 1, 3)
    with pytest.raises(ValueError, match=r"1 of 12 eigenvalues below -\S+; the smallest is -0\.3 "):
        make(kernel, C.y)


TARGETS: dict[str, tuple[Tensor, type[Exception], str]] = {
    "too few": (P.y[:5], ValueError, r"`y` must be of shape .*6"),
    "transposed": (P.y.T, ValueError, "seem to be transposed|of shape"),
    "three axes": (P.y[:, :, None], ValueError, ""),
    "a number": (torch.tensor(1.0), ValueError, ""),
    "NaN": (with_entry(P.y, (1, 0), math.nan), ValueError, "`y` must be finite; got 1 NaN"),
    "infinite": (with_entry(P.y, (1, 0), -math.inf), ValueError, "`y` must be finite.*1 infinite"),
    "complex": (P.y.to(torch.complex128), TypeError, "`y` must be a tensor of real"),
    "a list": ([1.0] * 6, TypeError, r"`y` must be a torch\.Tensor"),  # type: ignore[dict-item]
}


@of_kernels
@pytest.mark.parametrize("name", TARGETS)
def test_bad_targets(make: Callable[[Tensor, Tensor], Any], name: str) -> None:
    y, error, text = TARGETS[name]
    with pytest.raises(error, match=text or "`(y|num_outputs)` must be"):
        make(P.train_train, y)(1.0)


@pytest.mark.parametrize("name", ["gradient_flow_mse", "gradient_descent_mse", "gp_inference"])
def test_labels_are_no_targets(name: str) -> None:
    with pytest.raises(TypeError, match=r"`y` must be a tensor of real .*one_hot\(labels, C\)"):
        MAKERS[name](P.train_train, torch.zeros(6, dtype=torch.int64))


def test_targets_must_fit_a_full_kernel() -> None:
    with pytest.raises(ValueError, match=r"`y` must be of shape \[4, 3\] to fit `k_train_train`"):
        gradient_flow_mse(C.train_train, C.y[:, :2])
    with pytest.raises(ValueError, match=r"`y` must be of shape \[4, 3\].*shape \(4,\)"):
        gradient_flow_mse(C.train_train, C.y[:, 0])


TIMES: list[tuple[object, type[Exception], str]] = [
    (-1.0, ValueError, "`t` must be not negative; got -1. Training starts at t = 0"),
    (-math.inf, ValueError, "not negative; got -inf"),
    (math.nan, ValueError, "not negative; got nan"),
    (torch.tensor([1.0, -2.0]), ValueError, "not negative; got -2"),
    (torch.ones(2, 2), ValueError, "0-dim or 1-D tensor"),
    (torch.ones(0), ValueError, "0-dim or 1-D tensor"),
    (torch.tensor(True), TypeError, "0-dim or 1-D tensor"),
    ([1.0, 2.0], TypeError, r"a list of length 2\. Put several times into torch\.tensor"),
    (True, TypeError, "`t` must be a number"),
    ("inf", TypeError, "`t` must be a number"),
]


@of_predictors
@pytest.mark.parametrize(("t", "error", "text"), TIMES)
def test_bad_times(
    make: Callable[[Tensor, Tensor], Any], t: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make(P.train_train, P.y)(t)


@pytest.mark.parametrize(
    ("t", "text"),
    [(1.5, "a whole number of steps; got 1.5"), (1e17, r"at most 2\*\*53 steps; got 1e\+17")],
)
def test_steps_are_whole(t: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gradient_descent_mse(P.train_train, P.y, 0.1)(t)
    gradient_descent_mse(P.train_train, P.y, 0.1)(2.0)


STARTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"f0_train": P.f0_train[:4]}, ValueError, r"`f0_train` must be of shape \(6, 2\)"),
    ({"f0_train": P.f0_train[:, 0]}, ValueError, r"`f0_train` must be of shape \(6, 2\)"),
    ({"f0_train": P.f0_train * math.nan}, ValueError, "`f0_train` must be finite"),
    ({"f0_train": torch.ones(6, 2, dtype=torch.int64)}, TypeError, "`f0_train` must be a tensor"),
    ({"f0_train": 0.0}, TypeError, r"`f0_train` must be a torch\.Tensor"),
    (
        {"f0_test": P.f0_test},
        ValueError,
        r"`k_test_train` must be given with `f0_test`; got None\. Test outputs move with",
    ),
    (
        {"f0_test": P.f0_test[:2], "k_test_train": P.test_train},
        ValueError,
        r"`f0_test` must be of shape \(3, 2\)",
    ),
    ({"k_test_train": P.test_train.T}, ValueError, r"of shape \[M, 6\].*seems to be transposed"),
    ({"k_test_train": P.test_train[:, :4]}, ValueError, r"`k_test_train` must be of shape \[M, 6"),
    ({"k_test_train": C.test_train}, ValueError, "the layout is that of the train kernel"),
    ({"k_test_train": P.test_train * math.inf}, ValueError, "`k_test_train` must be finite"),
    ({"k_test_train": P.test_train[:0]}, ValueError, "`k_test_train` must be non-empty"),
]


@of_predictors
@pytest.mark.parametrize(("arguments", "error", "text"), STARTS)
def test_bad_starts(
    make: Callable[[Tensor, Tensor], Any],
    arguments: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        make(P.train_train, P.y)(1.0, **arguments)


def test_full_train_kernels_need_full_test_kernels() -> None:
    predictor = gradient_flow_mse(C.train_train, C.y)
    with pytest.raises(ValueError, match=r"`k_test_train` must be of shape \[M, 4, 3, 3\]"):
        predictor(1.0, k_test_train=C.test_train[:, :, 0, 0])


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan, math.inf])
def test_bad_steps(lr: float) -> None:
    with pytest.raises(ValueError, match="`lr` must be"):
        gradient_descent_mse(P.train_train, P.y, lr)


@pytest.mark.parametrize("momentum", [1.0, -0.1, 2.0, math.nan])
def test_bad_momentum(momentum: float) -> None:
    with pytest.raises(ValueError, match="`momentum` must be"):
        gradient_descent_mse(P.train_train, P.y, 0.1, momentum)
    with pytest.raises(ValueError, match="`momentum` must be"):
        max_learning_rate(P.train_train, momentum=momentum)


OPTIONS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: gradient_flow_mse(P.train_train, P.y, reduction="none"), ValueError, "`reduction`"),  # type: ignore[arg-type]
    (lambda: max_learning_rate(P.train_train, reduction="none"), ValueError, "`reduction`"),  # type: ignore[arg-type]
    (lambda: gradient_flow_mse(P.train_train, P.y, diag_reg=-1e-3), ValueError, "`diag_reg`"),
    (lambda: gp_inference(P.train_train, P.y, diag_reg=math.nan), ValueError, "`diag_reg`"),
    (lambda: gp_inference(P.train_train, P.y, diag_reg="1"), TypeError, "`diag_reg`"),  # type: ignore[arg-type]
    (lambda: gradient_descent_mse(P.train_train, P.y, "0.1"), TypeError, "`lr`"),  # type: ignore[arg-type]
    (lambda: gradient_flow("mse", P.train_train, P.y), TypeError, "`loss`"),  # type: ignore[arg-type]
    (lambda: gradient_flow(F.mse_loss, P.train_train, P.y, method="RK45"), ValueError, "`method`"),  # type: ignore[arg-type]
    (lambda: gradient_flow(F.mse_loss, P.train_train, P.y, rtol=0.0), ValueError, "`rtol`"),
    (lambda: gradient_flow(F.mse_loss, P.train_train, P.y, atol=-1.0), ValueError, "`atol`"),
    (
        lambda: gradient_flow(F.mse_loss, P.train_train, P.y, max_evaluations=0),
        ValueError,
        "`max_evaluations`",
    ),
    (
        lambda: gradient_flow(F.cross_entropy, P.train_train, LABELS)(1.0),
        ValueError,
        "`num_outputs` must be given to gradient_flow, or `f0_train` .*number of classes",
    ),
    (
        lambda: gradient_flow(F.cross_entropy, P.train_train, LABELS)(1.0, P.f0_train[:4]),
        ValueError,
        r"`f0_train` must be of shape \[6\] or \[6, O\]",
    ),
    (
        lambda: gradient_flow(F.cross_entropy, P.train_train, LABELS[:4], num_outputs=2),
        ValueError,
        r"`y` must be of shape \[6, \.\.\.\], one row per sample",
    ),
    (
        lambda: gradient_flow(F.cross_entropy, C.train_train, C.y, num_outputs=2),
        ValueError,
        r"`num_outputs` must be of shape \[4, 3\]",
    ),
    (lambda: max_learning_rate(C.train_train, num_outputs=2), ValueError, "3, as the kernel has"),
    (lambda: max_learning_rate(P.train_train, num_outputs=0), ValueError, "`num_outputs`"),
    (lambda: gp_inference(P.train_train, P.y)(P.test_train.T), ValueError, "`k_test_train`"),
    (
        lambda: gp_inference(P.train_train, P.y)(P.test_train, P.train_train),
        ValueError,
        r"`k_test_test` must be of shape \[3, 3\]",
    ),
    (
        lambda: gp_inference(P.train_train, P.y)(P.test_train, P.test_test.triu()),
        ValueError,
        "`k_test_test` must be symmetric",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), OPTIONS)
def test_bad_options(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_problems_are_as_they_were() -> None:
    """Nothing above has changed the shared tensors."""
    fresh: Problem = shared()
    assert torch.equal(P.train_train, fresh.train_train)
    assert torch.equal(P.y, draw(6, 2, seed=2))
