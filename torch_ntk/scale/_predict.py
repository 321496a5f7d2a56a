"""Predictions from a stored kernel: the limit of training, and a time with what it leaves out."""

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

_ROWS = 1024  # of an array that are read at once
_KNOWN = 2000  # coefficients of a series
_EXACT = 1e-9  # of the largest value


@dataclass(frozen=True)
class Prediction:
    """Outputs on test samples, float64.

    Attributes:
        mean: `[M]` or `[M, O]`, as the targets were.
        remainder: What the mean may be off by, because only leading eigenpairs are known, in its
            shape; 0 in the limit, which uses none.
        residual: Of the linear system, or the largest of the eigenpairs: what the numerical methods
            left, relative.
    """

    mean: Tensor
    remainder: Tensor
    residual: float


@dataclass(frozen=True)
class TestKernel:
    """A kernel `[M, N]` between test and training samples, which is read once.

    Attributes:
        rows: M.
        parts: Rows, columns and entries of parts of it, which together are all.
    """

    rows: int
    parts: Iterable[tuple[slice, slice, NDArray[Any]]]

    @staticmethod
    def of_array(name: str, array: Any, columns: int) -> TestKernel:
        """Of a tensor or an array, some rows at a time.

        Raises:
            TypeError: It is none.
            ValueError: It has another shape.
        """
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
    """K(x, X) α, of the solution α of the linear system."""
    columns = solution.x.reshape(len(solution.x), -1).numpy()
    mean, _ = _products(test, columns)
    found = torch.from_numpy(mean).reshape(test.rows, *solution.x.shape[1:])
    return Prediction(found, torch.zeros_like(found), solution.residual)


def at_time(
    test: TestKernel,
    pairs: Eigenpairs,
    y: Tensor,
    t: float,
    shift: float,
    multiply: Callable[[Tensor], Tensor],
    most: int,
) -> Prediction:
    """k_xᵀ g(K + shift) y with g(λ) = (1 - exp(-λt))/λ, from leading eigenpairs of K.

    On the complement of the eigenvectors g(K + shift) is replaced by p(K + shift), p a polynomial
    that is close to g between shift and λ_k + shift, where the matrix has its other eigenvalues.
    The error is at most the largest |g - p| there times the norm of what is left of y; only the
    part of k_x in the complement meets it.

    Args:
        test: K(x, X).
        pairs: Leading eigenpairs of K.
        y: Targets `[N, O]`.
        t: The time.
        shift: Added to K's diagonal.
        multiply: Products with K.
        most: The degree of p is at most this.
    """
    values, vectors = pairs.values.clamp(min=0.0), pairs.vectors
    known = vectors.T @ y
    rest = y - vectors @ known
    gains = torch.from_numpy(_gain((values + shift).numpy(), t))
    alpha = vectors @ (gains[:, None] * known)
    off = 0.0
    if len(values) < len(y):
        found = _polynomial(shift, float(values[-1]) + shift, t, most)
        off = found.off
        alpha += found.of(lambda v: _outside(vectors, multiply(v)) + shift * v, rest)
    products, squares = _products(test, torch.cat([alpha, vectors], dim=1).numpy())
    mean, along = products[:, : y.shape[1]], products[:, y.shape[1] :]
    # Of ‖k‖² - ‖Vᵀk‖² no more digits are known than rounding leaves.
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
    """A Chebyshev series between two numbers.

    Attributes:
        low, high: The numbers.
        coefficients: Of the polynomials of Chebyshev.
        off: How far it is at most from the function that it stands for.
    """

    low: float
    high: float
    coefficients: NDArray[Any]
    off: float

    def of(self, multiply: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """p(A) v, of the products with A, by Clenshaw's recurrence."""
        first, *others = (float(c) for c in self.coefficients)
        one = two = torch.zeros_like(v)
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        for coefficient in reversed(others):
            step = (multiply(one) - middle * one) / half if one.any() else one
            one, two = coefficient * v + 2 * step - two, one
        if not others:
            return first * v
        return first * v + (multiply(one) - middle * one) / half - two


def _polynomial(low: float, high: float, t: float, most: int) -> _Polynomial:
    """A polynomial for g between two numbers, of the least degree that makes it exact to 1e-9.

    What a series that is cut leaves out is at most the sum of the other coefficients, which fall
    faster than exponentially, as g is entire, once their number exceeds that of √(t (high - low)).
    Where not even 2,000 of them show that, it is the constant in the middle of the values of g,
    which falls from `low` to `high`.
    """
    top, bottom = (float(_gain(np.array(value), t)) for value in (low, high))
    constant = _Polynomial(low, high, np.array([0.5 * (top + bottom)]), 0.5 * (top - bottom))
    if most < 1 or not high > low:
        return constant
    domain = [low, high]
    series = np.polynomial.Chebyshev.interpolate(lambda x: _gain(x, t), _KNOWN, domain=domain)
    sizes = np.abs(series.coef)
    tail = np.append(np.cumsum(sizes[::-1])[::-1][1:], 0.0)  # of what follows each of them
    if tail[_KNOWN // 2] > _EXACT * top:  # their rounding alone is some thousandth of that
        return constant
    degree = min(most, int(np.argmax(tail <= 2 * _EXACT * top)))
    off = float(tail[degree])
    return (
        constant if off > constant.off else _Polynomial(low, high, series.coef[: degree + 1], off)
    )


def _gain(values: NDArray[Any], t: float) -> NDArray[Any]:
    """(1 - exp(-λt))/λ, which is t at λ = 0."""
    safe = np.where(values > 0, values, 1.0)
    return np.asarray(np.where(values > 0, -np.expm1(-values * t) / safe, t))


def _products(test: TestKernel, vectors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """K(x, X) times vectors `[N, C]`, and ‖k_x‖² of every row."""
    out, squares = np.zeros((test.rows, vectors.shape[1])), np.zeros(test.rows)
    for rows, columns, values in test.parts:
        part = values.astype(np.float64, copy=False)
        if not math.isfinite(float(part.sum())):
            raise value_error("k_test_train", "finite", describe(torch.from_numpy(part)))
        out[rows] += part @ vectors[columns]
        squares[rows] += np.square(part).sum(1)
    return out, squares
