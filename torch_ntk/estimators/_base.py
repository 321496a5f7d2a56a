"""The common base class of regressor and classifier: data, kernel and solution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator  # type: ignore[import-untyped]
from sklearn.utils.validation import (  # type: ignore[import-untyped]
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from .._checks import describe, type_error, value_error
from ..memory import ranges
from ..scale import KernelStore
from ._kernels import KernelSettings, evaluate
from ._solve import Array, coefficients, symmetric
from ._stored import check_store, of_store

_BLOCK = 2048  # samples whose features are in memory at the same time


class KernelMachine(BaseEstimator):  # type: ignore[misc]
    """f(x) = K(x, X) α, with α from training by gradient flow; see `NTKRegressor`."""

    def __init__(
        self,
        kernel: Any = "mlp",
        *,
        network: Any = None,
        forward_fn: Any = None,
        standard: Any = None,
        depth: int = 3,
        activation: Any = "relu",
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.1,
        input_shape: Sequence[int] | None = None,
        diag_reg: float = 1e-6,
        time: float | None = None,
        features: int | None = None,
        seed: int = 0,
        coupled: bool = False,
        training: bool = False,
    ) -> None:
        # scikit-learn requires that arguments are stored unchanged, and checked when they are used.
        self.kernel = kernel
        self.network = network
        self.forward_fn = forward_fn
        self.standard = standard
        self.depth = depth
        self.activation = activation
        self.sigma_w = sigma_w
        self.sigma_b = sigma_b
        self.input_shape = input_shape
        self.diag_reg = diag_reg
        self.time = time
        self.features = features
        self.seed = seed
        self.coupled = coupled
        self.training = training

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self._is_precomputed
        return tags

    @property
    def _is_precomputed(self) -> bool:
        return isinstance(self.kernel, str) and self.kernel == "precomputed"

    def _settings(self) -> KernelSettings:
        return KernelSettings(*(getattr(self, field.name) for field in fields(KernelSettings)))

    # ------------------------------------------------------------------ data
    def _training_data(self, X: Any, y: Any, **options: Any) -> tuple[Array, Any]:
        """X as rows in float64 and y, both checked by scikit-learn; sets `input_shape_`."""
        self._settings().check_flags()
        if isinstance(self.kernel, KernelStore):
            check_store(self.kernel, X, self.features)
        rows, shape = _rows(X)
        y = _array(y)
        rows, y = validate_data(self, rows, y, dtype=np.float64, **options)
        if self.input_shape is not None:
            wanted = _shape(self.input_shape)
            if math.prod(wanted) != rows.shape[1]:
                raise value_error(
                    "input_shape",
                    f"a shape of {rows.shape[1]} numbers, the features of a sample",
                    f"{wanted}",
                    "Give the shape of one sample without the batch: (1, 8, 8) for digits.",
                )
            if shape not in (None, wanted):
                raise value_error(
                    "X", f"rows, or samples of input_shape={wanted}", f"shape {shape}"
                )
            shape = wanted
        self.input_shape_ = shape if shape is not None else (rows.shape[1],)
        return rows, y

    def _samples(self, rows: Array) -> Tensor:
        # A copy, because an array may be read-only, which tensors do not support.
        return torch.tensor(rows).reshape(-1, *self.input_shape_)

    # ------------------------------------------------------------------ fit and evaluate
    def _solve(self, rows: Array, y: Array) -> None:
        """Set `dual_coef_` `[N, O]` from rows and targets `[N, O]`."""
        self._phi: tuple[int, int] | None = None
        self._store = self.kernel if isinstance(self.kernel, KernelStore) else None
        if self._store is not None:
            self._kernel = None
            self.dual_coef_ = of_store(self._store, y, self.diag_reg, self.time)
            return
        if self._is_precomputed:
            if rows.shape[0] != rows.shape[1]:
                raise value_error(
                    "X",
                    "the square kernel of the training samples for kernel='precomputed'",
                    f"an array of shape {rows.shape}",
                    "Pass K(X, X) to fit, and K(X_test, X) to predict.",
                )
            kernel = rows
            self._kernel = None
        else:
            # A copy: if the network were trained further, or a parameter of the estimator changed,
            # the kernel of predictions would not fit the coefficients.
            settings, self._own = self._settings().copied()
            samples = self._samples(rows)
            if self._own is not None:
                self._own.check(samples)
            if self.features is not None:
                self._solve_features(settings, samples, y, self.features)
                return
            kernel = evaluate(settings.function(), samples, None)
            self._kernel, self._X = settings, samples
        self.dual_coef_ = coefficients(symmetric(kernel), y, len(rows), self.diag_reg, self.time)

    def _solve_features(
        self, settings: KernelSettings, samples: Tensor, y: Array, dim: int
    ) -> None:
        """Set `coef_` `[dim, O]`, computing features of one block of samples at a time.

        For K = Φ Φᵀ, Φᵀ (K + λ)⁻¹ = (Φᵀ Φ + λ)⁻¹ Φᵀ, and likewise for every function of K.
        """
        phi = settings.features(dim, self.seed)
        gram, right = np.zeros((dim, dim)), np.zeros((dim, y.shape[1]))
        for a, b in _blocks(settings, samples):
            own = phi(samples[a:b])
            gram += own.T @ own
            right += own.T @ y[a:b]
        found = coefficients(gram, right, len(samples), self.diag_reg, self.time)
        self._kernel, self._phi, self.coef_ = settings, (dim, self.seed), found

    def _outputs(self, X: Any) -> Array:
        """f(x) `[N, O]`."""
        check_is_fitted(self)
        if self._store is not None:
            return np.asarray(self._store.apply(X, torch.from_numpy(self.dual_coef_)).numpy())
        rows, shape = _rows(X)
        if shape is not None and shape != self.input_shape_:
            raise value_error(
                "X",
                f"samples of shape {self.input_shape_}, as in fit",
                f"samples of shape {shape}",
            )
        rows = validate_data(self, rows, reset=False, dtype=np.float64)
        if self._kernel is None:
            return np.asarray(rows @ self.dual_coef_)
        samples = self._samples(rows)
        if self._own is not None:
            self._own.check(samples)
        if self._phi is not None:
            phi = self._kernel.features(*self._phi)
            blocks = _blocks(self._kernel, samples)
            return np.concatenate([phi(samples[a:b]) @ self.coef_ for a, b in blocks])
        return np.asarray(evaluate(self._kernel.function(), samples, self._X) @ self.dual_coef_)


def _blocks(settings: KernelSettings, samples: Tensor) -> list[tuple[int, int]]:
    """The first and last samples of the blocks whose features are computed at once."""
    n = len(samples)
    return list(ranges(0, n, n if settings.coupled else _BLOCK))


def _rows(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """X with flattened samples, and the shape of a sample if it was not flat."""
    if isinstance(X, Mapping):
        raise type_error(
            "X",
            "an array or a tensor [N, ...]",
            f"{describe(X)} with the keys {list(X)}",
            "Concatenate its entries as columns, and split them again in forward_fn: "
            "forward_fn=lambda net, x: net(a=x[:, :5], b=x[:, 5:]).",
        )
    X = _array(X)
    if isinstance(X, np.ndarray) and X.ndim > 2:
        return X.reshape(len(X), -1), X.shape[1:]
    return X, None


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _shape(given: Any) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in given)
    except (TypeError, ValueError) as error:
        raise type_error(
            "input_shape", "a sequence of integers", describe(given), "As in (1, 8, 8)."
        ) from error
    if not shape or min(shape) < 1:
        raise value_error("input_shape", "a sequence of positive integers", f"{shape}")
    return shape
