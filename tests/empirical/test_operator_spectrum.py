"""Extreme eigenvalues and traces of operators, against dense float64 matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from case_vision import resnet
from oracles import relative_error
from torch import Tensor
from traces import settings

from torch_ntk import MLP
from torch_ntk.empirical import NTKOperator
from torch_ntk.empirical.operator import _lanczos
from torch_ntk.empirical.operator._kernel_map import KernelMap
from torch_ntk.empirical.operator._stochastic_trace import on_sphere, signs, xtrace

OUTPUTS = ["full", "trace", "mean", "pseudo"]


def operator(output: str = "mean", n: int = 50, dtype: torch.dtype = torch.float64) -> NTKOperator:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 5, generator=generator)
    return NTKOperator(MLP([5, 30, 2]).to(dtype), x.to(dtype), output=output)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("which", ["LA", "SA"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_extreme_eigenvalues(output: str, which: str, k: int) -> None:
    theta = operator(output)
    dense = theta.to_dense()
    values = torch.linalg.eigvalsh(dense)
    found = theta.eigsh(k, which)
    expected = values[:k] if which == "SA" else values.flip(0)[:k]
    assert float((found.values - expected).abs().max()) < 1e-12 * float(values[-1])
    assert found.vectors.shape == (theta.shape[0], k)
    gram = found.vectors.T @ found.vectors
    assert relative_error(gram, torch.eye(k, dtype=torch.float64)) < 1e-10
    errors = (dense @ found.vectors - found.values * found.vectors).norm(dim=0)
    assert float(errors.max()) < 1e-11 * float(values[-1])
    assert float((found.residuals * found.values.abs()).max()) < 1e-11 * float(values[-1])
    if which == "LA":
        assert float(found.residuals.max()) < 1e-10
    size = theta.shape[0]
    expected_rounding = size * torch.finfo(torch.float64).eps * float(values[-1])
    assert found.rounding == pytest.approx(expected_rounding, rel=1e-10, abs=0.0)


def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix is small, and cheaper than products, in all of these tests."""
    monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)


def test_lanczos_needs_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    by_products(monkeypatch)
    theta = operator("full", n=60)
    values = torch.linalg.eigvalsh(theta.to_dense())

    def never(self: NTKOperator) -> Tensor:
        raise AssertionError("the matrix was formed")

    monkeypatch.setattr(NTKOperator, "to_dense", never)
    before = settings()
    first = theta.eigsh(2)
    assert settings() == before
    again, vectors = theta.eigsh(2)
    assert torch.equal(first.values, again)
    assert torch.equal(first.vectors, vectors)
    assert relative_error(first.values, values.flip(0)[:2]) < 1e-12


def test_residuals_are_those_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that returns something else is found out."""
    by_products(monkeypatch)
    theta = operator(n=60)
    largest = _lanczos._largest

    def wrong(*args):
        values, vectors = largest(*args)
        return 1.01 * values, vectors

    monkeypatch.setattr(_lanczos, "_largest", wrong)
    assert float(theta.eigsh(1).residuals) == pytest.approx(0.01 / 1.01, rel=1e-6)


def test_float32() -> None:
    theta = operator(n=60, dtype=torch.float32)
    found = theta.eigsh(1)
    exact = torch.linalg.eigvalsh(theta.to_dense().double())[-1]
    assert float(abs(found.values[0] / exact - 1)) < 1e-5
    assert float(found.residuals) < 1e-5
    with pytest.raises(ValueError, match=r"`which`.*dtype=torch.float64"):
        theta.eigsh(1, "SA")


def test_an_operator_of_zeros() -> None:
    def f(p, x):
        return x * 0 * p["w"]

    x = torch.randn(60, 2, dtype=torch.float64)
    theta = NTKOperator(f, x, params={"w": torch.ones(2, dtype=torch.float64)})
    found = theta.eigsh(2)
    assert found.values.tolist() == [0.0, 0.0]
    assert found.residuals.tolist() == [0.0, 0.0]
    assert theta.trace("xtrace", 8) == (0.0, 0.0)
    assert theta.trace(n_samples=4) == (0.0, 0.0)


def test_what_eigsh_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    by_products(monkeypatch)
    theta = operator(n=60)
    with pytest.raises(ValueError, match="`which` must be one of 'LA', 'SA'"):
        theta.eigsh(1, "LM")
    with pytest.raises(ValueError, match="`k` must be at most 60"):
        theta.eigsh(61)
    with pytest.raises(ValueError, match="`tol`"):
        theta.eigsh(1, tol=-1.0)
    x = torch.randn(100, 2000)  # eigenvalues close to one another
    flat = NTKOperator(lambda p, z: z @ p["w"], x, params={"w": torch.zeros(2000, 1)})
    with pytest.raises(RuntimeError, match=r"of 4 eigenvalues.*`max_products`"):
        flat.eigsh(4, max_products=1)
    monkeypatch.setattr(_lanczos, "budget", lambda device: 1000)
    with pytest.raises(ValueError, match=r"`which`.*\(60, 60\).*dense matrix.*values that are too"):
        theta.eigsh(1, "SA")


def test_scipy() -> None:
    theta = operator("full", n=10)
    dense = theta.to_dense().numpy()
    linear = theta.to_scipy()
    assert linear.dtype == np.float64
    assert linear.shape == theta.shape
    v, matrix = np.linspace(-1, 1, 20), np.linspace(-1, 2, 60).reshape(20, 3)
    np.testing.assert_allclose(linear @ v, dense @ v, rtol=1e-10)
    np.testing.assert_allclose(linear @ matrix, dense @ matrix, rtol=1e-10)
    np.testing.assert_allclose(linear.T @ v, dense @ v, rtol=1e-10)
    single = operator("full", n=10, dtype=torch.float32).to_scipy()
    assert (single @ v).dtype == np.float64


@pytest.mark.parametrize(
    ("output", "method"),
    [*((output, "hutchinson") for output in OUTPUTS), ("full", "xtrace"), ("mean", "xtrace")],
)
def test_traces_are_unbiased_and_errors_true(output: str, method: str) -> None:
    theta = operator(output, n=12)
    exact = float(theta.to_dense().trace())
    generator = torch.Generator().manual_seed(5)
    found = [theta.trace(method, 8, generator) for _ in range(60)]
    estimates = torch.tensor([t.estimate for t in found])
    spread = float(estimates.std())
    assert abs(float(estimates.mean()) - exact) < 4 * spread / 60**0.5
    stated = float(torch.tensor([t.standard_error**2 for t in found]).mean()) ** 0.5
    assert 0.5 < stated / spread < 2.0


def test_hutchinson_by_its_formula() -> None:
    """vᵀΘv of every vector of signs; the error is that of a mean, with n - 1 degrees of freedom."""
    theta = operator("full", n=6)
    dense = theta.to_dense()
    vectors = signs(5, len(dense), torch.Generator().manual_seed(3))
    values = [float(v @ dense @ v) for v in vectors]
    mean = sum(values) / 5
    variance = sum((v - mean) ** 2 for v in values) / 4
    found = theta.trace("hutchinson", 5, torch.Generator().manual_seed(3))
    assert found.estimate == pytest.approx(mean, rel=1e-12)
    assert found.standard_error == pytest.approx((variance / 5) ** 0.5, rel=1e-10)


def test_xtrace_by_leaving_out_one_vector_at_a_time() -> None:
    theta = operator("full", n=8)
    dense, size, k = theta.to_dense(), theta.shape[0], 5
    omega = on_sphere(k, size, torch.Generator().manual_seed(3)).T
    values = []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        q, _ = torch.linalg.qr(dense @ omega[:, others])
        outside = omega[:, i] - q @ (q.T @ omega[:, i])
        values.append(float((q.T @ dense @ q).trace() + outside @ dense @ outside))
    mean = sum(values) / k
    variance = sum((v - mean) ** 2 for v in values) / (k - 1)
    found = theta.trace("xtrace", 2 * k, torch.Generator().manual_seed(3))
    assert found.estimate == pytest.approx(mean, rel=1e-11)
    assert found.standard_error == pytest.approx((variance / k) ** 0.5, rel=1e-9)


def test_xtrace_is_exact_where_the_products_span_the_range() -> None:
    a = torch.randn(30, 4, dtype=torch.float64)
    matrix = a @ a.T
    for k in (5, 6, 12):
        estimate, error = xtrace(lambda v: matrix @ v, on_sphere(k, 30, None).T)
        assert estimate == pytest.approx(float(matrix.trace()), rel=1e-10)
        assert error < 1e-9


def test_xtrace_gains_from_a_decaying_spectrum() -> None:
    theta = operator(n=50)
    exact = float(theta.to_dense().trace())
    simple, better = theta.trace("hutchinson", 32), theta.trace("xtrace", 32)
    assert better.standard_error < 0.5 * simple.standard_error
    assert abs(better.estimate - exact) < 5 * better.standard_error


def test_random_numbers_are_the_generators_alone() -> None:
    theta = operator(n=20)
    before = settings()
    for method in ("hutchinson", "xtrace"):
        first = theta.trace(method, 8)
        assert theta.trace(method, 8) == first
        generator = torch.Generator().manual_seed(9)
        other = theta.trace(method, 8, generator)
        assert other != first
        assert theta.trace(method, 8, generator) != other
        assert theta.trace(method, 8, torch.Generator().manual_seed(9)) == other
    assert settings() == before
    assert set(signs(5, 40, None).flatten().tolist()) == {-1.0, 1.0}


def test_traces_of_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = operator("mean", n=20)
    monkeypatch.setattr(NTKOperator, "to_dense", None)
    assert theta.trace(n_samples=2).standard_error > 0


def test_what_trace_refuses() -> None:
    theta = operator(n=20)
    with pytest.raises(ValueError, match="`method` must be one of 'hutchinson', 'xtrace'"):
        theta.trace("diagonal")
    with pytest.raises(ValueError, match="`n_samples` must be at least 2"):
        theta.trace(n_samples=1)
    for samples in (3, 40):
        with pytest.raises(ValueError, match=r"`n_samples`.*less than 40.*to_dense"):
            theta.trace("xtrace", samples)


def test_the_largest_eigenvalue_of_a_residual_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Lanczos method and dense float64 agree on a real network."""
    by_products(monkeypatch)
    theta = NTKOperator(resnet().double(), torch.randn(11, 3, 16, 16, dtype=torch.float64))
    dense = torch.linalg.eigvalsh(theta.to_dense())
    found = theta.eigsh(1)
    assert float(abs(found.values[0] / dense[-1] - 1)) < 1e-10
    assert float(found.residuals) < 1e-9
