"""Drift of kernels and parameters, and the gap to the linearization."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from torch_ntk.metrics import kernel_distance, kernel_drift, linearization_gap, param_drift

RNG = np.random.default_rng


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 3), (5, 5, 2, 2), (4, 7), (4, 7, 3, 3), (1, 1)])
def test_kernel_drift_is_the_relative_frobenius_distance(shape: tuple[int, ...]) -> None:
    start, now = RNG(0).standard_normal((2, *shape))
    expected = np.sqrt(((now - start) ** 2).sum()) / np.sqrt((start**2).sum())
    value = kernel_drift(torch.from_numpy(now), torch.from_numpy(start))
    assert value.item() == pytest.approx(expected, rel=1e-13)
    assert value.shape == ()
    assert value.dtype == torch.float64


def test_kernel_drift_known_values_and_invariances() -> None:
    start = torch.from_numpy(RNG(1).standard_normal((4, 4)))
    assert kernel_drift(start, start).item() == 0.0
    assert kernel_drift(torch.zeros_like(start), start).item() == 1.0
    assert kernel_drift(3.0 * start, start).item() == pytest.approx(2.0, rel=1e-15)
    now = torch.from_numpy(RNG(2).standard_normal((4, 4)))
    base = kernel_drift(now, start).item()
    for scale in (1e-200, 1e200):  # squares of these under- and overflow
        assert kernel_drift(scale * now, scale * start).item() == pytest.approx(base, rel=1e-12)
    rotation = torch.linalg.qr(torch.from_numpy(RNG(3).standard_normal((4, 4)))).Q
    turned = kernel_drift(rotation @ now @ rotation.T, rotation @ start @ rotation.T)
    assert turned.item() == pytest.approx(base, rel=1e-12)


def test_kernel_distance_is_one_minus_the_cosine() -> None:
    start, now = (torch.from_numpy(RNG(s).standard_normal((4, 4, 2))) for s in (1, 2))
    expected = 1.0 - float((start * now).sum() / start.norm() / now.norm())
    for scale in (1.0, 1e-200, 1e200, 1e307):
        found = kernel_distance(scale * now, start)
        assert found.item() == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(3.0 * start, start).item() < 1e-31
    # Half of the square of a small angle, which 1 - cosine would lose.
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert kernel_distance(first + 1e-9 * first.flip(1), first).item() == pytest.approx(
        0.5e-18, rel=1e-6
    )
    with pytest.raises(ValueError, match="`theta_t` must be a kernel other than zero"):
        kernel_distance(torch.zeros(3, 3), torch.eye(3))


def test_full_kernel_of_independent_outputs_drifts_as_its_block() -> None:
    start, now = (torch.from_numpy(RNG(s).standard_normal((4, 4))) for s in (4, 5))
    eye = torch.eye(3, dtype=torch.float64)
    full = kernel_drift(now[:, :, None, None] * eye, start[:, :, None, None] * eye)
    assert full.item() == pytest.approx(kernel_drift(now, start).item(), rel=1e-13)


def test_small_drift_in_float32_is_computed_in_float64() -> None:
    start = torch.full((50, 50), 1.0)
    now = start + torch.finfo(torch.float32).eps
    assert kernel_drift(now, start).item() == pytest.approx(2.0**-23, rel=1e-12, abs=0.0)
    half = kernel_drift(torch.full((2, 2), 6e4, dtype=torch.float16), torch.ones(2, 2).half())
    assert half.item() == pytest.approx(6e4 - 1.0, rel=1e-3)  # 6e4² overflows float16


def test_kernel_drift_bad_input() -> None:
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="`theta_0` must be a kernel other than zero"):
        kernel_drift(eye, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"`theta_t` must be of the shape of `theta_0`, \(3, 3\)"):
        kernel_drift(torch.eye(4), eye)
    with pytest.raises(ValueError, match="`theta_t` must be of the shape"):
        kernel_drift(eye[:, :, None, None], eye)  # would broadcast without a word
    for shape in [(3,), (), (2, 2, 2, 3), (2, 2, 2, 2, 2)]:
        with pytest.raises(ValueError, match="`theta_0` must be a kernel of shape"):
            kernel_drift(torch.ones(shape), torch.ones(shape))


def model_params(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).named_parameters())


def test_param_drift_is_the_norm_over_all_parameters_together() -> None:
    now, start = model_params(0), model_params(1)
    flat_now = np.concatenate([p.detach().double().numpy().ravel() for p in now.values()])
    flat_start = np.concatenate([p.detach().double().numpy().ravel() for p in start.values()])
    expected = np.linalg.norm(flat_now - flat_start) / np.linalg.norm(flat_start)
    value = param_drift(now, start)
    assert value.item() == pytest.approx(expected, rel=1e-13)
    assert value.dtype == torch.float64
    assert not value.requires_grad
    assert param_drift(list(now.values()), list(start.values())).item() == value.item()
    assert param_drift(iter(now.values()), tuple(start.values())).item() == value.item()


def test_param_drift_pairs_by_name_not_by_order() -> None:
    now, start = model_params(0), model_params(1)
    shuffled = dict(reversed(list(now.items())))
    assert param_drift(shuffled, start).item() == pytest.approx(
        param_drift(now, start).item(), rel=1e-14
    )


def test_param_drift_edge_values() -> None:
    start = model_params(2)
    assert param_drift(start, start).item() == 0.0
    doubled = {name: 2.0 * p for name, p in start.items()}
    assert param_drift(doubled, start).item() == 1.0
    wide = {name: p.double() for name, p in start.items()}
    assert param_drift(wide, start).item() == 0.0
    # A zero entry and one without elements are no obstacle while something else is there.
    zero = {"a": torch.zeros(2), "b": torch.tensor([2.0]), "c": torch.empty(0)}
    assert param_drift({**zero, "a": torch.tensor([0.0, 1.0])}, zero).item() == 0.5


def test_param_drift_bad_input() -> None:
    start = model_params(3)
    renamed = {name.replace("0.", "first."): p for name, p in start.items()}
    with pytest.raises(ValueError, match=r"missing '0\.weight', '0\.bias', unexpected 'first"):
        param_drift(renamed, start)
    reshaped = {**start, "2.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"`params_t\['2\.bias'\]` must be of the shape .* \(2,\)"):
        param_drift(reshaped, start)
    broken = {**start, "2.bias": torch.tensor([math.inf, math.nan])}
    with pytest.raises(
        ValueError, match=r"`params_t\['2\.bias'\]` must be finite; got 1 NaN and 1"
    ):
        param_drift(broken, start)
    integer = {**start, "2.bias": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(TypeError, match=r"`params_0\['2\.bias'\]` must be a tensor of real"):
        param_drift(start, integer)
    with pytest.raises(ValueError, match="`params_0` must be other than zero"):
        param_drift([torch.ones(2)], [torch.zeros(2)])
    with pytest.raises(ValueError, match="1 for 2 entries: missing 1, unexpected none"):
        param_drift([torch.ones(2)], [torch.ones(2), torch.ones(2)])
    with pytest.raises(ValueError, match="`params_t` must be non-empty"):
        param_drift({}, start)
    with pytest.raises(TypeError, match="`params_t` must be a mapping if `params_0` is one"):
        param_drift(list(start.values()), start)
    with pytest.raises(TypeError, match=r"`params_t\[0\]` must be a torch\.Tensor; got a tuple"):
        param_drift(start.items(), [torch.ones(1)])  # type: ignore[arg-type]
    for wrong in (torch.ones(2, 2), nn.Linear(2, 2), 3.0, "weights"):
        with pytest.raises(TypeError, match="`params_t` must be a mapping from name to tensor"):
            param_drift(wrong, [torch.ones(2)])  # type: ignore[arg-type]


def test_many_wrong_names_are_counted_not_all_listed() -> None:
    start = {f"p{k}": torch.ones(1) for k in range(8)}
    with pytest.raises(ValueError, match="'p4' and 3 more, unexpected 'q'"):
        param_drift({"q": torch.ones(1)}, start)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 4)])
def test_linearization_gap(shape: tuple[int, ...]) -> None:
    f_t, f_lin, f_0 = RNG(6).standard_normal((3, *shape))
    expected = np.linalg.norm((f_t - f_lin).ravel()) / np.linalg.norm((f_t - f_0).ravel())
    value = linearization_gap(*(torch.from_numpy(f) for f in (f_t, f_lin, f_0)))
    assert value.item() == pytest.approx(expected, rel=1e-13)
    assert value.shape == ()
    assert value.dtype == torch.float64


def test_linearization_gap_edges() -> None:
    f_0, f_t = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0])
    assert linearization_gap(f_0, f_0, f_0).item() == 0.0  # nothing has moved
    assert linearization_gap(f_t, f_t, f_0).item() == 0.0  # exactly linear
    assert linearization_gap(f_t, f_0, f_0).item() == 1.0  # the linear model has not moved
    assert linearization_gap(f_0, f_t, f_0).item() == math.inf  # only the linear model has
    shifted = linearization_gap(f_t + 8.0, f_0 + 8.0, f_0 + 8.0)
    assert shifted.item() == 1.0


def test_linearization_gap_of_a_quadratic_model() -> None:
    # f(θ) = x·θ + θ²/2 from θ_0 = 0: f_lin = x·θ, so the gap is ‖θ²/2‖ / ‖x·θ + θ²/2‖.
    x, theta = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), 0.1
    f_0, f_lin = torch.zeros(3, dtype=torch.float64), x * theta
    f_t = f_lin + theta**2 / 2
    expected = math.sqrt(3 * 0.005**2) / math.sqrt(0.105**2 + 0.195**2 + 0.305**2)
    assert linearization_gap(f_t, f_lin, f_0).item() == pytest.approx(expected, rel=1e-12)


def test_linearization_gap_bad_input() -> None:
    f = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"`f_lin` must be of the shape of `f_t`, \(3, 2\)"):
        linearization_gap(f, torch.ones(3, 1), f)
    with pytest.raises(ValueError, match=r"`f_0` must be of the shape of `f_t`"):
        linearization_gap(f, f, torch.ones(2))
    with pytest.raises(ValueError, match=r"`f_lin` must be finite; got 0 NaN and 6 infinite"):
        linearization_gap(f, f / 0.0, f)
    with pytest.raises(ValueError, match="`f_t` must be non-empty"):
        linearization_gap(f[:0], f[:0], f[:0])


def test_a_difference_that_overflows_is_infinite_not_nan() -> None:
    huge = torch.full((2, 2), 1.5e308, dtype=torch.float64)
    start = torch.eye(2, dtype=torch.float64)
    assert kernel_drift(huge, start).item() == math.inf
    assert linearization_gap(huge, -huge, huge - 1e300).item() == math.inf
