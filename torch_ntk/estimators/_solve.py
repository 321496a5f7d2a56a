"""The coefficients of a kernel machine after training by gradient flow."""

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

_LOOSE_SYMMETRY = 1e-6  # asymmetry relative to the largest entry that float32 rounding explains


def symmetric(kernel: Array) -> Array:
    """(K + Kᵀ)/2; a `ValueError` if K is not symmetric up to rounding."""
    difference = float(np.abs(kernel - kernel.T).max())
    largest = float(np.abs(kernel).max())
    if difference > _LOOSE_SYMMETRY * largest:
        raise value_error(
            "kernel",
            "symmetric on the training samples",
            f"one with max|K - Kᵀ| = {difference:.3g} and max|K| = {largest:.3g}",
            "A kernel has the same value for two samples in either order.",
        )
    return 0.5 * kernel + 0.5 * kernel.T


def coefficients(kernel: Array, y: Array, samples: int, diag_reg: object, time: object) -> Array:
    r"""α with f(x) = K(x, X) α after training from f = 0 on ½ Σ‖f - y‖² for `time`.

    With K' = K + diag_reg·(tr K / N)·1, α is K'⁻¹ y in the limit, by a Cholesky factorization, and
    K'⁻¹ (1 - exp(-K' t)) y at a time t, by an eigendecomposition. For features Φ with K = Φ Φᵀ, the
    same formulas with Φᵀ Φ, which has the same trace, and Φᵀ y give w with f(x) = φ(x) w.

    Args:
        kernel: K `[N, N]`, or Φᵀ Φ `[dim, dim]`; symmetric.
        y: Targets `[N, O]`, or Φᵀ y `[dim, O]`.
        samples: The number N of samples.
        diag_reg: The regularization, not negative, in units of the mean of K's diagonal.
        time: The time, not negative; None or infinity means the limit.

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
            "All samples are zero (allowed with sigma_b > 0), or it is not a kernel.",
        )
    regular = kernel + ridge * unit * np.eye(len(kernel))
    if is_limit(time):
        return _limit(regular, y, ridge)
    at = check_finite_number(
        "time", plain(time), minimum=0.0, remedy="Pass None for the limit of infinite time."
    )
    # Copies, because an array may be read-only, which tensors do not support.
    predict = gradient_flow_mse(torch.tensor(regular), torch.tensor(y), reduction="sum")
    # With K(x, X) the identity, the outputs are the coefficients themselves.
    identity = torch.eye(len(kernel), dtype=torch.float64)
    _, alpha = predict(at, k_test_train=identity)
    return np.asarray(alpha)


def is_limit(time: object) -> bool:
    """Whether a time is None or infinite."""
    return time is None or (isinstance(time, float) and time == math.inf)


def plain(value: object) -> object:
    """A Python number in place of a NumPy number, which parameter searches pass."""
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
        "repeated samples. A matrix with negative eigenvalues beyond rounding is not a kernel.",
    )
