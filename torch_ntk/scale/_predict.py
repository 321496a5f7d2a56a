"""Predictions from a stored kernel: the limit of training, and a time with what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def at_time(test: TestKernel, pairs: Eigenpairs, y: Tensor, t: float, shift: float) -> Prediction:
    """k_xᵀ g(K + shift) y with g(λ) = (1 - exp(-λt))/λ, from leading eigenpairs of K.

    On the complement of the eigenvectors g(K + shift) y is c times the rest of y, c the middle of
    the values that g can have there: it falls with λ, from g(shift) to g(λ_k + shift). The error
    is at most half of their difference times the norm of that rest; only the part of k_x in the
    complement meets it.

    Args:
        test: K(x, X).
        pairs: Leading eigenpairs of K.
        y: Targets `[N, O]`.
        t: The time.
        shift: Added to K's diagonal.
    """
    values, vectors = pairs.values.clamp(min=0.0).numpy(), pairs.vectors.numpy()
    known = vectors.T @ y.numpy()
    rest = y.numpy() - vectors @ known
    complete = len(values) == len(y)
    high, low = (_gain(np.array(v + shift), t) for v in (0.0, 0.0 if complete else values[-1]))
    middle, half = 0.5 * (high + low), 0.5 * (high - low)
    alpha = vectors @ (_gain(values + shift, t)[:, None] * known) + middle * rest
    found, squares = _products(test, np.concatenate([alpha, vectors], axis=1))
    mean, along = found[:, : y.shape[1]], found[:, y.shape[1] :]
    # Of ‖k‖² - ‖Vᵀk‖² no more digits are known than rounding leaves.
    rounding = len(y) * np.finfo(np.float64).eps * squares
    outside = np.sqrt(np.maximum(squares - np.square(along).sum(1), 0.0) + rounding)
    left = half * outside[:, None] * np.linalg.norm(rest, axis=0)
    residual = float(pairs.residuals.max())
    return Prediction(torch.from_numpy(mean), torch.from_numpy(left), residual)


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
