r"""The density of a kernel's eigenvalues, smoothed by a Gaussian.

    φ(t) = 1/D Σ_i g(t - λ_i),    g the density of a normal distribution of standard deviation σ,

is `tr f(Θ) / D` for `f = g(t - ·)`, which stochastic Lanczos quadrature estimates for all t at once
(Lin, Saad and Yang, "Approximating spectral densities of large matrices", 2016; Ghorbani, Krishnan
and Xiao, "An investigation into neural net optimization via Hessian eigenvalue density", 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._checks import check_finite_number, check_positive_int, value_error
from ._lanczos_quadrature import LanczosQuadrature
from ._stochastic_trace import signs
from ._symmetric_product import SymmetricProduct

_WIDTH = 0.01  # the default width, as a part of the largest eigenvalue
_PER_WIDTH = 4  # points of the grid per width
_MOST_POINTS = 1_000_000
_REACH = 6.0  # the distance, in widths, beyond which a Gaussian counts as 0
_CHANGE = 1e-3  # converged when more Lanczos steps move less than this part of the total mass


@dataclass(frozen=True)
class SpectralDensity:
    """The smoothed density of a kernel's eigenvalues; all tensors are float64 on the CPU.

    Attributes:
        grid: The arguments t `[G]`, equally spaced, from below the smallest to above the largest
            eigenvalue.
        density: The density φ(t) `[G]`, whose integral is 1.
        standard_error: The standard error of the density `[G]`, from the variation between random
            vectors; 0 if all eigenvalues have been computed.
        width: The standard deviation σ of the Gaussian, which is the resolution of the density.
        values: The nodes of the quadrature, or the eigenvalues themselves.
        weights: The weights of the nodes, whose sum is 1: `Σ weights · f(values)` estimates
            `tr f(Θ) / D` for smooth f.
    """

    grid: Tensor
    density: Tensor
    standard_error: Tensor
    width: float
    values: Tensor
    weights: Tensor


def spectral_density(
    product: SymmetricProduct,
    width: float | None,
    n_samples: int,
    max_products: int,
    generator: torch.Generator | None,
) -> SpectralDensity:
    """Return the density and its standard error."""
    if check_positive_int("n_samples", n_samples) < 2:
        raise value_error("n_samples", "at least 2, for the error of the estimate", n_samples)
    check_positive_int("max_products", max_products)
    if width is not None and check_finite_number("width", width) <= 0.0:
        raise value_error("width", "positive", width, "None is a hundredth of the largest value.")
    if product.is_dense_cheaper():
        values = torch.linalg.eigvalsh(product.formed().to_dense())
        sigma = _width(width, float(values[-1]))
        grid = _grid(sigma, float(values[-1]))
        even = torch.full_like(values, 1.0 / len(values))
        density = _smoothed(grid, values[None], even[None], sigma)[0]
        return SpectralDensity(grid, density, torch.zeros_like(grid), sigma, values, even)
    z = signs(n_samples, product.size, generator).T.cpu()
    quadrature = LanczosQuadrature(product.multiply, z, max_products)
    before: Tensor | None = None
    while True:
        more = quadrature.advance()
        nodes, weights = quadrature.rule()
        largest = float(nodes.max())
        sigma = _width(width, largest)
        grid = _grid(sigma, largest)
        each = _smoothed(grid, nodes, weights, sigma)
        error, density = torch.std_mean(each, dim=0)
        # The largest eigenvalue, and so the grid, is found within a few steps.
        change = float("inf")
        if before is not None and len(before) == len(density):
            change = float((density - before).abs().sum()) * float(grid[1] - grid[0])
        if change <= _CHANGE or quadrature.steps == product.size:
            break
        if not more:
            raise RuntimeError(
                f"The density still changed by {change:.2g} of its mass after {max_products} "
                "products of each vector: raise `max_products` or `width`."
            )
        before = density
    return SpectralDensity(
        grid,
        density,
        error / n_samples**0.5,
        sigma,
        nodes.reshape(-1),
        weights.reshape(-1) / n_samples,
    )


def _width(width: float | None, largest: float) -> float:
    if width is not None:
        return float(width)
    return _WIDTH * largest if largest > 0.0 else 1.0  # a kernel of zeros has no scale


def _grid(sigma: float, largest: float) -> Tensor:
    """Return points from below 0 to above the largest eigenvalue, at multiples of their spacing."""
    step = sigma / _PER_WIDTH
    beyond = math.ceil(_REACH * _PER_WIDTH)
    last = math.ceil(max(largest, 0.0) / step) + beyond
    if last > _MOST_POINTS:
        raise value_error(
            "width",
            f"at least {largest * _PER_WIDTH / _MOST_POINTS:.2g}, which takes a million points",
            sigma,
        )
    return step * torch.arange(-beyond, last + 1, dtype=torch.float64, device="cpu")


def _smoothed(grid: Tensor, values: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """Return `Σ_j weights[k, j] g(grid - values[k, j])` as `[K, G]`."""
    found = values.new_zeros(len(values), len(grid), dtype=torch.float64)
    for v, w in zip(values.T, weights.T, strict=True):
        found += w[:, None] * torch.exp(-0.5 * ((grid - v[:, None]) / sigma).square())
    return found / (sigma * math.sqrt(2 * math.pi))
