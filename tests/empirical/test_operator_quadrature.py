"""Logarithms of determinants and densities of eigenvalues, against all eigenvalues."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracles import relative_error
from products_of_matrices import by_products, decaying
from torch import Tensor
from traces import settings, snapshot

from torch_ntk import MLP, NTKOperator
from torch_ntk.empirical.operator import _lanczos_quadrature, _log_determinant
from torch_ntk.empirical.operator._kernel_map import KernelMap
from torch_ntk.empirical.operator._lanczos_quadrature import LanczosQuadrature
from torch_ntk.empirical.operator._log_determinant import log_determinant
from torch_ntk.empirical.operator._spectral_density import spectral_density
from torch_ntk.empirical.operator._stochastic_trace import signs


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(matrix: Tensor, diag_reg: float) -> Tensor:
    unit = matrix.diagonal().mean()
    return matrix + diag_reg * unit * torch.eye(len(matrix), dtype=matrix.dtype)


@pytest.mark.parametrize("steps", [5, 10, 40])
def test_the_rule_is_that_of_gauss(steps: int) -> None:
    """m nodes integrate polynomials of degree 2m - 1 in the measure that z sees."""
    matrix, z = decaying(40, power=0.5), signs(3, 40, seeded(1)).T
    quadrature = LanczosQuadrature(lambda v: matrix @ v, z, 40)
    while quadrature.steps < steps:
        quadrature.advance()
    nodes, weights = quadrature.rule()
    assert relative_error(weights.sum(1), torch.ones(3, dtype=torch.float64)) < 1e-12
    power = z.clone()
    for degree in range(2 * min(steps, 10)):
        exact = (z * power).sum(0) / 40
        assert relative_error((weights * nodes**degree).sum(1), exact) < 1e-10, degree
        power = matrix @ power
    if steps == 40:  # all of the spectrum
        assert relative_error(nodes[0], torch.linalg.eigvalsh(matrix)) < 1e-8


def test_a_space_that_is_exhausted() -> None:
    """Three eigenvalues are found by three steps; those after it have no weight."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]).double().repeat(10))
    quadrature = LanczosQuadrature(lambda v: matrix @ v, signs(2, 30, seeded(1)).T, 30)
    for _ in range(3):
        quadrature.advance()
    nodes, weights = quadrature.rule()
    counts = weights > 1e-12
    assert counts.sum(1).tolist() == [3, 3]
    found = nodes[counts].view(2, 3)
    assert relative_error(found, torch.tensor([[1.0, 2.0, 3.0]] * 2).double()) < 1e-12


@pytest.mark.parametrize("diag_reg", [1e-4, 1e-2, 1.0])
def test_log_determinants_have_true_errors(diag_reg: float) -> None:
    matrix = decaying(150, power=1.0)
    exact = float(torch.logdet(shifted(matrix, diag_reg)))
    product = by_products(matrix)
    found = [log_determinant(product, diag_reg, 8, 150, seeded(s)) for s in range(30)]
    estimates = torch.tensor([f.estimate for f in found], dtype=torch.float64)
    spread = float(estimates.std())
    assert abs(float(estimates.mean()) - exact) < 4 * spread / 30**0.5
    stated = float(torch.tensor([f.standard_error**2 for f in found]).mean()) ** 0.5
    assert 0.5 < stated / spread < 2.0
    assert spread < 0.02 * abs(exact) + 0.5


def test_the_preconditioner_takes_the_variance_out() -> None:
    """Without it, the estimate by signs alone varies far more."""
    matrix = decaying(150)
    a = shifted(matrix, 1.0)
    values, vectors = torch.linalg.eigh(a)
    z = signs(400, 150, seeded(3)).T
    plain = float((values.log()[:, None] * (vectors.T @ z).square()).sum(0).std()) / 16**0.5
    found = log_determinant(by_products(matrix), 1.0, 16, 150, None)
    assert found.standard_error < 0.3 * plain
    assert abs(found.estimate - float(torch.logdet(a))) < 5 * found.standard_error


def test_log_determinants_by_the_matrix() -> None:
    matrix = decaying(40, power=1.0)
    for diag_reg in (0.0, 0.1):
        found = log_determinant(by_products(matrix, dense=True), diag_reg, 2, 1, None)
        exact = float(torch.logdet(shifted(matrix, diag_reg)))
        assert found.estimate == pytest.approx(exact, rel=1e-12)
        assert found.standard_error == 0.0


def test_determinants_that_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    singular = decaying(40, rank=10)
    with pytest.raises(ValueError, match=r"`diag_reg`.*0 to working precision.*-∞.*Raise it"):
        log_determinant(by_products(singular, dense=True), 0.0, 4, 50, None)
    zero = torch.zeros(40, 40, dtype=torch.float64)
    for dense in (True, False):
        with pytest.raises(ValueError, match="0 to working precision"):
            log_determinant(by_products(zero, dense=dense), 0.1, 4, 50, None)
    single = by_products(decaying(40), torch.float32)
    with pytest.raises(ValueError, match=r"`diag_reg`.*got 1e-08.*dtype=torch.float64"):
        log_determinant(single, 1e-8, 4, 50, None)
    monkeypatch.setattr(_log_determinant, "budget", lambda device: 1000)
    with pytest.raises(ValueError, match=r"`diag_reg` must be positive.*not fit in memory"):
        log_determinant(by_products(decaying(40)), 0.0, 4, 50, None)


def trapezoid(grid: Tensor, values: Tensor) -> float:
    return float(torch.trapezoid(values, grid))


@pytest.mark.parametrize("dense", [True, False])
def test_densities(dense: bool) -> None:
    """The formula written out; mass and mean of the density."""
    matrix = decaying(120, power=0.5)
    values = torch.linalg.eigvalsh(matrix)
    found = spectral_density(by_products(matrix, dense=dense), 0.02, 16, 120, seeded(1))
    assert found.width == 0.02
    normal = torch.distributions.Normal(values, 0.02)
    exact = normal.log_prob(found.grid[:, None]).exp().mean(1)
    assert trapezoid(found.grid, found.density) == pytest.approx(1.0, rel=1e-8)
    mean = float((found.weights * found.values).sum())
    assert trapezoid(found.grid, found.grid * found.density) == pytest.approx(mean, rel=1e-8)
    if dense:
        assert relative_error(found.density, exact) < 1e-12
        assert not found.standard_error.any()
        assert mean == pytest.approx(float(values.mean()), rel=1e-12)
        return
    z = signs(16, 120, seeded(1))
    hutchinson = float(((z @ matrix) * z).sum(1).mean()) / 120
    assert mean == pytest.approx(hutchinson, rel=1e-10)
    off = (found.density - exact).abs() / (found.standard_error + 1e-3 * float(exact.max()))
    assert float(off.max()) < 5
    # The error is that of a mean over the 16 vectors, with 15 degrees of freedom.
    centres, shares = found.values.view(16, -1, 1), found.weights.view(16, -1, 1) * 16
    peaks = torch.distributions.Normal(centres, 0.02).log_prob(found.grid).exp()
    each = (shares * peaks).sum(1)
    assert relative_error(found.density, each.mean(0)) < 1e-12
    variance = (each - each.mean(0)).square().sum(0) / 15
    assert relative_error(found.standard_error, (variance / 16).sqrt()) < 1e-10


def test_errors_of_densities_are_true() -> None:
    matrix = decaying(100, power=0.5)
    exact = spectral_density(by_products(matrix, dense=True), 0.05, 2, 1, None)
    found = [spectral_density(by_products(matrix), 0.05, 6, 100, seeded(s)) for s in range(30)]
    inside = exact.density > 0.05 * exact.density.max()
    size = min(len(d.grid) for d in (*found, exact))
    estimates = torch.stack([d.density[:size] for d in found])[:, inside[:size]]
    spread = estimates.std(0)
    stated = torch.stack([d.standard_error[:size] for d in found])[:, inside[:size]]
    ratio = stated.square().mean(0).sqrt() / spread
    assert float(ratio.min()) > 0.5
    assert float(ratio.max()) < 2.0
    off = (estimates.mean(0) - exact.density[:size][inside[:size]]).abs() / (spread / 30**0.5)
    assert float(off.max()) < 5


def test_the_default_width_follows_the_largest_eigenvalue() -> None:
    matrix = 50 * decaying(60)
    found = spectral_density(by_products(matrix), None, 4, 60, None)
    assert found.width == pytest.approx(0.5, rel=1e-10)
    assert float(found.grid[0]) <= -6 * found.width
    assert float(found.grid[-1]) >= 50 + 6 * found.width
    zero = spectral_density(by_products(torch.zeros(30, 30).double()), None, 4, 30, None)
    assert trapezoid(zero.grid, zero.density) == pytest.approx(1.0, rel=1e-8)


def test_what_does_not_converge_or_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = decaying(200, power=0.3)
    with pytest.raises(RuntimeError, match=r"density still changed.*`max_products` or `width`"):
        spectral_density(by_products(matrix), 1e-3, 4, 12, None)
    with pytest.raises(RuntimeError, match=r"determinant still changed.*`max_products`"):
        log_determinant(by_products(decaying(200)), 1e-9, 400, 3, None)
    with pytest.raises(ValueError, match=r"`width` must be at least"):
        spectral_density(by_products(matrix, dense=True), 1e-9, 4, 12, None)
    monkeypatch.setattr(_lanczos_quadrature, "budget", lambda device: 1000)
    with pytest.raises(ValueError, match=r"`n_samples` must be fewer than 4.*`max_products`"):
        spectral_density(by_products(matrix), None, 4, 100, None)


def operator(output: str) -> NTKOperator:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(15, 5, generator=generator, dtype=torch.float64)
    torch.manual_seed(3)
    return NTKOperator(MLP([5, 20, 3]).double(), x, output=output, probes=2)


@pytest.mark.parametrize("output", ["full", "mean", "pseudo", "probed"])
def test_operators(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theta = operator(output)
    dense = theta.to_dense()
    exact = float(torch.logdet(shifted(dense, 0.1)))
    assert theta.logdet(0.1) == (pytest.approx(exact, rel=1e-10), 0.0)
    density = theta.spectral_density()
    monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)
    monkeypatch.setattr(KernelMap, "dense", None)
    before = settings()
    found = theta.logdet(0.1)
    assert found == theta.logdet(0.1)
    assert abs(found.estimate - exact) < 4 * found.standard_error + 1e-9 * abs(exact)
    estimated = theta.spectral_density()
    assert settings() == before
    assert estimated.width == pytest.approx(density.width, rel=1e-8)
    mean = float((estimated.weights * estimated.values).sum())
    assert mean == pytest.approx(float(dense.trace()) / len(dense), rel=0.3)
    assert mean != pytest.approx(float(dense.trace()) / len(dense), rel=1e-6)


def test_leaves_no_trace() -> None:
    net, x = MLP([5, 20, 3]).double(), torch.randn(15, 5, dtype=torch.float64)
    before = snapshot(net, x)
    theta = NTKOperator(net, x)
    theta.logdet(0.1)
    theta.spectral_density()
    assert snapshot(net, x) == before


def test_what_is_refused() -> None:
    theta: Any = operator("mean")
    for method in (theta.logdet, theta.spectral_density):
        with pytest.raises(ValueError, match="`n_samples` must be at least 2"):
            method(n_samples=1)
        with pytest.raises(ValueError, match="`max_products`"):
            method(max_products=0)
    with pytest.raises(ValueError, match="`diag_reg`"):
        theta.logdet(-1.0)
    for width in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="`width`"):
            theta.spectral_density(width=width)
    rectangular: Any = NTKOperator(MLP([5, 8, 3]), torch.randn(3, 5), torch.randn(4, 5))
    for name in ("logdet", "spectral_density"):
        with pytest.raises(ValueError, match=rf"`x2` must be None for {name}\(\)"):
            getattr(rectangular, name)()
