"""The coefficients of a kernel machine that has been trained by gradient flow."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.linalg import (  # type: ignore[import-untyped]
    LinAlgError,
    cho_factor,
    cho_solve,
    lapack,
)

from .._checks import check_finite_number, value_error
from ..predict import gradient_flow_mse

Array: TypeAlias = np.ndarray[Any, Any]

_LOOSE_SYMMETRY = 1e-6  # of the largest entry: what float32 leaves


def symmetric(kernel: Array) -> Array:
    """(K + Kᵀ)/2, if K is symmetric but for rounding.

    Raises:
        ValueError: It is not.
    """
    difference = float(np.abs(kernel - kernel.T).max())
    largest = float(np.abs(kernel).max())
    if difference > _LOOSE_SYMMETRY * largest:
        raise value_error(
            "kernel",
            "symmetric on the training samples",
            f"one with max|K - Kᵀ| = {difference:.3g} and max|K| = {largest:.3g}",
            "A kernel takes the same two samples to the same number in either order.",
        )
    return 0.5 * kernel + 0.5 * kernel.T


def coefficients(kernel: Array, y: Array, samples: int, diag_reg: object, time: object) -> Array:
    r"""α with f(x) = K(x, X) α after training from f = 0 on ½ Σ‖f - y‖² for `time`.

    With K' = K + diag_reg·(tr K / N)·1, α = K'⁻¹ y in the limit, by Cholesky's decomposition, and
    α = K'⁻¹ (1 - exp(-K' t)) y at a time t, by eigendecomposition. Of features Φ with K = Φ Φᵀ, the
    same from Φᵀ Φ, which has the same trace, and Φᵀ y gives w with f(x) = φ(x) w.

    Args:
        kernel: K `[N, N]`, or Φᵀ Φ `[dim, dim]`; symmetric.
        y: Targets `[N, O]`, or Φᵀ y `[dim, O]`.
        samples: N.
        diag_reg: Not negative, in units of the mean of K's diagonal.
        time: Not negative; None or infinity is the limit.

    Raises:
        TypeError, ValueError: An argument is wrong, or K' is numerically not positive definite.
    """
    ridge = check_finite_number("diag_reg", plain(diag_reg), minimum=0.0)
    unit = float(np.trace(kernel)) / samples
    if not unit > 0.0:
        raise value_error(
            "kernel",
            "positive on the diagonal",
            f"a mean of {unit:.3g}",
            "All samples are zero, or the kernel is none; sigma_b > 0 gives a zero sample one.",
        )
    regular = kernel + ridge * unit * np.eye(len(kernel))
    if is_limit(time):
        return _limit(regular, y, ridge)
    at = check_finite_number(
        "time", plain(time), minimum=0.0, remedy="None is the limit of infinite time."
    )
    # Copies: an array may be read-only, which tensors do not know.
    predict = gradient_flow_mse(torch.tensor(regular), torch.tensor(y), reduction="sum")
    # With K(x, X) the identity, the outputs are the coefficients themselves.
    identity = torch.eye(len(kernel), dtype=torch.float64)
    _, alpha = predict(at, k_test_train=identity)
    return np.asarray(alpha)


def is_limit(time: object) -> bool:
    """Whether a time is None or infinite."""
    return time is None or (isinstance(time, float) and time == math.inf)


def plain(value: object) -> object:
    """A NumPy number, as searches over parameters pass them, as one of Python's."""
    return value.item() if isinstance(value, np.number) else value


def _limit(kernel: Array, y: Array, ridge: float) -> Array:
    n = kernel.shape[0]
    try:
        factor = cho_factor(kernel, lower=True, check_finite=False)
    except LinAlgError:
        raise _singular(kernel, ridge) from None
    norm = float(np.abs(kernel).sum(axis=0).max())
    # Rounding can lift the last pivots of a singular matrix above zero.
    reciprocal, _ = lapack.dpocon(factor[0], norm, uplo="L")
    if reciprocal < n * np.finfo(np.float64).eps:
        raise _singular(kernel, ridge)
    return np.asarray(cho_solve(factor, y, check_finite=False))


def _singular(kernel: Array, ridge: float) -> ValueError:
    values = np.linalg.eigvalsh(kernel)
    return value_error(
        "kernel",
        f"numerically positive definite on the training samples with diag_reg={ridge:g}",
        f"eigenvalues from {values[0]:.3g} to {values[-1]:.3g}",
        "Raise diag_reg (1e-3, for example; its unit is the mean diagonal), or remove "
        "repeated samples. A kernel with negative eigenvalues beyond rounding is none.",
    )
