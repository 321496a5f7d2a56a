"""Predictions from a stored kernel: in the limit of training, or at a time with an error bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._checks import describe, type_error, value_error
from ..empirical.operator import Eigenpairs, Solution
from ..memory import ranges

_ROWS = 1024  # rows of an array that are read at once
_COEFFICIENTS = 2000  # of the Chebyshev series from which a polynomial is cut
_EXACT = 1e-9  # the error, relative to the largest value, at which a polynomial counts as exact


@dataclass(frozen=True)
class Prediction:
    """Outputs on test samples, float64.

    Attributes:
        mean: The outputs, `[M]` or `[M, O]` as the targets.
        remainder: A bound on the error of `mean` that comes from using only leading eigenpairs, in
            the shape of `mean`. It is 0 in the limit, which uses no eigenpairs.
        residual: The relative residual of the linear system, or the largest one of the eigenpairs.
    """

    mean: Tensor
    remainder: Tensor
    residual: float


@dataclass(frozen=True)
class TestKernel:
    """A kernel `[M, N]` between test and training samples, which is read once.

    Attributes:
        rows: The number M of test samples.
        parts: The blocks of the kernel: for each the rows, the columns, and the entries.
    """

    rows: int
    parts: Iterable[tuple[slice, slice, NDArray[Any]]]

    @staticmethod
    def of_array(name: str, array: Any, columns: int) -> TestKernel:
        """Read a tensor or an array `[M, columns]` some rows at a time."""
        if isinstance(array, Tensor):
            array = array.detach().cpu()
        elif not (hasattr(array, "shape") and hasattr(array, "dtype")):
            raise type_error(name, "a KernelStore, a tensor or an array", array)
        if len(array.shape) != 2 or array.shape[1] != columns:
            came = f"one of shape {tuple(array.shape)}"
            raise value_error(name, f"a kernel [M, {columns}]", came if array.shape else array)
        every = slice(0, columns)
        parts = (
            (slice(a, b), every, np.asarray(array[a:b]))
            for a, b in ranges(0, array.shape[0], _ROWS)
        )
        return TestKernel(array.shape[0], parts)


def in_the_limit(test: TestKernel, solution: Solution) -> Prediction:
    """K(x, X) α, where α is the solution of the linear system."""
    columns = solution.x.reshape(len(solution.x), -1).numpy()
    mean, _ = _products(test, columns)
    found = torch.from_numpy(mean).reshape(test.rows, *solution.x.shape[1:])
    return Prediction(found, torch.zeros_like(found), solution.residual)


def at_time(
    test: TestKernel,
    pairs: Eigenpairs,
    y: Tensor,
    t: float,
    multiply: Callable[[Tensor], Tensor],
    shift: float,
    max_products: int,
) -> Prediction:
    """k_xᵀ g(K + shift) y with g(λ) = (1 - exp(-λt))/λ, from leading eigenpairs of K.

    On the complement of the eigenvectors V, g(K + shift) is replaced by p(K + shift), where the
    polynomial p, of a degree of at most `max_products`, is close to g between shift and λ_k +
    shift: the interval that contains the other eigenvalues. Only the parts of y `[N, O]` and k_x in
    the complement are affected, so that the error is at most max|g - p| · ‖(1 - VVᵀ) k_x‖ · ‖(1 -
    VVᵀ) y‖. `multiply` computes a product with K.
    """
    values, vectors = pairs.values.clamp(min=0.0), pairs.vectors
    known = vectors.T @ y
    rest = y - vectors @ known
    gains = torch.from_numpy(_gain((values + shift).numpy(), t))
    alpha = vectors @ (gains[:, None] * known)
    off = 0.0
    if len(values) < len(y):
        found = _polynomial(shift, float(values[-1]) + shift, t, max_products)
        off = found.off
        alpha += found.of(lambda v: _outside(vectors, multiply(v)) + shift * v, rest)
    products, squares = _products(test, torch.cat([alpha, vectors], dim=1).numpy())
    mean, along = products[:, : y.shape[1]], products[:, y.shape[1] :]
    # ‖(1 - VVᵀ)k‖² = ‖k‖² - ‖Vᵀk‖² cancels, so that the bound must include the rounding of ‖k‖².
    rounding = len(y) * np.finfo(np.float64).eps * squares
    outside = np.sqrt(np.maximum(squares - np.square(along).sum(1), 0.0) + rounding)
    left = off * outside[:, None] * np.linalg.norm(rest.numpy(), axis=0)
    residual = float(pairs.residuals.max())
    return Prediction(torch.from_numpy(mean), torch.from_numpy(left), residual)


def _outside(vectors: Tensor, v: Tensor) -> Tensor:
    """The part of v in the complement of orthonormal vectors."""
    return v - vectors @ (vectors.T @ v)


@dataclass(frozen=True)
class _Polynomial:
    """A Chebyshev series on an interval.

    Attributes:
        low, high: The ends of the interval.
        coefficients: The coefficients of the Chebyshev polynomials.
        off: A bound on the distance to the function that it approximates.
    """

    low: float
    high: float
    coefficients: NDArray[Any]
    off: float

    def of(self, multiply: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """p(A) v, from products with A, by Clenshaw's recurrence."""
        first, *others = (float(c) for c in self.coefficients)
        one = two = torch.zeros_like(v)
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        for coefficient in reversed(others):
            step = (multiply(one) - middle * one) / half if one.any() else one
            one, two = coefficient * v + 2 * step - two, one
        if not others:
            return first * v
        return first * v + (multiply(one) - middle * one) / half - two


def _polynomial(low: float, high: float, t: float, max_degree: int) -> _Polynomial:
    """A polynomial for g on an interval, of the least degree that makes it exact to 1e-9.

    Cutting a Chebyshev series makes an error of at most the sum of the absolute values of the
    dropped coefficients. Because g is entire, they fall faster than exponentially beyond about
    √(t (high - low)) of them. Where 2,000 coefficients are too few to see this, or `max_degree`
    leaves a larger error, the result is the constant in the middle between g(low) and g(high); g
    is decreasing, so that half of their difference is its error.
    """
    top, bottom = (float(_gain(np.array(value), t)) for value in (low, high))
    constant = _Polynomial(low, high, np.array([0.5 * (top + bottom)]), 0.5 * (top - bottom))
    if max_degree < 1 or not high > low:
        return constant
    domain = [low, high]
    series = np.polynomial.Chebyshev.interpolate(
        lambda x: _gain(x, t), _COEFFICIENTS, domain=domain
    )
    sizes = np.abs(series.coef)
    tail = np.append(np.cumsum(sizes[::-1])[::-1][1:], 0.0)  # the sums of all later coefficients
    # Once the series has converged, the later half is rounding: about a thousandth of this bound.
    if tail[_COEFFICIENTS // 2] > _EXACT * top:
        return constant
    degree = min(max_degree, int(np.argmax(tail <= 2 * _EXACT * top)))
    off = float(tail[degree])
    return (
        constant if off > constant.off else _Polynomial(low, high, series.coef[: degree + 1], off)
    )


def _gain(values: NDArray[Any], t: float) -> NDArray[Any]:
    """(1 - exp(-λt))/λ, which is t at λ = 0."""
    safe = np.where(values > 0, values, 1.0)
    return np.asarray(np.where(values > 0, -np.expm1(-values * t) / safe, t))


def _products(test: TestKernel, vectors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The product K(x, X) v with vectors v `[N, C]`, and ‖k_x‖² for every row."""
    out, squares = np.zeros((test.rows, vectors.shape[1])), np.zeros(test.rows)
    for rows, columns, values in test.parts:
        part = values.astype(np.float64, copy=False)
        if not math.isfinite(float(part.sum())):
            raise value_error("k_test_train", "finite", describe(torch.from_numpy(part)))
        out[rows] += part @ vectors[columns]
        squares[rows] += np.square(part).sum(1)
    return out, squares
