"""Coefficients of estimators whose training kernel is in a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._checks import describe, value_error
from ..scale import KernelStore
from ._solve import Array, coefficients, is_limit, plain


def check_store(store: KernelStore, X: Any, features: object) -> None:
    """Raise `ValueError` unless a store is the kernel of the training samples."""
    if features is not None:
        raise value_error(
            "features", "None for a kernel in a store", describe(features), "A store is exact."
        )
    if not store.symmetric:
        raise value_error(
            "kernel",
            "a store of one set of samples",
            f"{store!r} between two",
            "Compute the kernel of the training samples, and pass this one to predict.",
        )
    if not store.is_of(X):
        raise value_error(
            "X",
            "the samples of the store, in the form in which they were passed to compute_kernel",
            describe(X),
            f"The store is of {store.about['x1']}.",
        )


def of_store(store: KernelStore, y: Array, diag_reg: object, time: object) -> Array:
    """α `[N, O]` as from `coefficients`; at a finite time, the kernel must fit in memory."""
    if is_limit(time):
        found = store.solve(torch.tensor(y), plain(diag_reg))  # type: ignore[arg-type]
        return np.asarray(found.x.numpy())
    kernel = store.to_dense().double().numpy()
    return coefficients(kernel, y, len(y), diag_reg, time)
