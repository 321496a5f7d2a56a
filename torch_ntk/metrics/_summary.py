"""All spectral quantities of a kernel from one eigendecomposition, and their noise floor.

An eigenvalue of a computed kernel is known to about ‖E‖₂, where E is the error of the kernel's
entries (Weyl's inequality: |λ_k(Θ + E) - λ_k(Θ)| ≤ ‖E‖₂). A bound on it, the *noise floor*,
decides what is reported as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_finite_number, type_error, value_error
from ._kernels import as_kernel, as_matrices, check_symmetric, frobenius


@dataclass(frozen=True, eq=False)
class SpectralSummary:
    """The spectral quantities of a kernel; see `spectral_summary`.

    Attributes:
        eigenvalues: `[D]`, ascending, float64, as computed: small negative ones are not hidden.
        lambda_min: The smallest eigenvalue. A negative one within the noise floor is given as 0;
            one below it stays negative.
        lambda_max: The largest eigenvalue.
        condition: lambda_max / lambda_min, or infinity where lambda_min does not exceed the
            noise floor.
        effective_rank: exp of the entropy of the normalized eigenvalues; 0 for the zero kernel,
            NaN where `is_psd` is False, since it is then not defined.
        numerical_rank: How many eigenvalues exceed the noise floor in size.
        noise_floor: The size below which an eigenvalue cannot be distinguished from 0.
        is_psd: Whether no eigenvalue is below -noise_floor. Every kernel of a network is positive
            semi-definite; False means that this one has a larger error than its precision explains.
    """

    eigenvalues: Tensor
    lambda_min: float
    lambda_max: float
    condition: float
    effective_rank: float
    numerical_rank: int
    noise_floor: float
    is_psd: bool


def spectral_summary(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> SpectralSummary:
    """All spectral quantities of a kernel from one eigendecomposition.

    With the kernel's matrix Θ `[D, D]` and its eigenvalues λ_1 ≤ … ≤ λ_D, computed in float64:

    - noise floor = max(D · eps · max|λ|, ‖Θ - Θᵀ‖_F / 2): the rounding of the entries at relative
      precision eps, or the observed asymmetry if that is larger;
    - condition = λ_D / λ_1, infinite if λ_1 ≤ noise floor;
    - numerical rank = #{k: |λ_k| > noise floor};
    - effective rank = exp(-Σ p_k ln p_k), p_k = max(λ_k, 0) / Σ_l max(λ_l, 0).

    The floor is a worst case. A positive λ_1 below it may still be right and is reported as
    computed; a negative λ_1 above -floor is noise, because the matrix is positive semi-definite,
    and reported as 0. An eigenvalue below -floor cannot be noise: it is reported as it is, and
    `is_psd` is False. This raises no error, so that one bad kernel does not end a monitored
    training.

    Args:
        kernel: `[N, N]`; `[N, N, O, O]`, whose matrix has Θ[n, m, i, j] in row (n, i) and column
            (m, j), D = N·O; or `[N, N, O]`, O independent blocks, whose spectra are united, D =
            N·O.
        eps: The relative precision at which the kernel was *computed*, as a number or as a dtype;
            by default that of the kernel's dtype. Give `torch.float32` for a kernel that was
            computed in float32 and cast to float64, and 2**-10 for one computed with TF32.

    Returns:
        The summary: Python numbers, and the eigenvalues as a tensor.

    Raises:
        TypeError: `kernel` is not a dense tensor of real floating-point numbers, or `eps` neither
            a number nor a floating-point dtype.
        ValueError: `kernel` has another shape, is empty, not finite, or asymmetric by more than
            √eps of its largest entry; or `eps` is not in (0, 1) or finer than the kernel's dtype.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import spectral_summary
        >>> s = spectral_summary(torch.diag(torch.tensor([0.0, 2.0, 2.0], dtype=torch.float64)))
        >>> s.lambda_min, s.condition, s.numerical_rank, round(s.effective_rank, 12)
        (0.0, inf, 2, 2.0)
    """
    values, precision, asymmetry = decompose(kernel, eps)
    low, high = float(values[0]), float(values[-1])
    floor = max(values.numel() * precision * max(abs(low), abs(high)), asymmetry)
    is_psd = low >= -floor
    smallest = max(low, 0.0) if is_psd else low
    return SpectralSummary(
        eigenvalues=values,
        lambda_min=smallest,
        lambda_max=high,
        condition=high / smallest if smallest > floor else math.inf,
        effective_rank=_entropic_rank(values) if is_psd else math.nan,
        numerical_rank=int((values.abs() > floor).sum()),
        noise_floor=floor,
        is_psd=is_psd,
    )


def decompose(kernel: Tensor, eps: float | torch.dtype | None) -> tuple[Tensor, float, float]:
    """The ascending eigenvalues of (Θ + Θᵀ)/2 for a checked kernel Θ.

    Beside them are the relative precision of the kernel's entries, and ‖Θ - Θᵀ‖_F / 2.
    """
    theta = as_kernel("kernel", kernel)
    precision = _precision(kernel.dtype, eps)
    check_symmetric(
        "kernel",
        theta,
        math.sqrt(precision),
        "If it was computed at a lower precision than its dtype, say so, for instance with "
        "eps=torch.float32. The kernel between two different sets of inputs has no spectrum.",
    )
    matrices = as_matrices(theta)
    # Halved before they are added, so that no sum overflows. An exactly symmetric matrix is kept.
    symmetric = 0.5 * matrices + 0.5 * matrices.mT
    values = torch.linalg.eigvalsh(symmetric).flatten().sort().values
    return values, precision, frobenius(matrices - symmetric)


def _precision(dtype: torch.dtype, eps: object) -> float:
    """The relative precision of entries stored in `dtype`: `eps`, or that of `dtype` itself."""
    stored = torch.finfo(dtype).eps
    if eps is None:
        return stored
    if isinstance(eps, torch.dtype):
        if not eps.is_floating_point:
            raise type_error(
                "eps", "a number or a floating-point dtype", str(eps), "Try torch.float32."
            )
        value = torch.finfo(eps).eps
    else:
        value = check_finite_number("eps", eps)
    if not stored <= value < 1.0:
        raise value_error(
            "eps",
            f"at least {stored:.3g}, the precision of {dtype}, and below 1",
            f"{value:.3g}",
            "A kernel is not more precise than its dtype; leave `eps` out.",
        )
    return value


def _entropic_rank(values: Tensor) -> float:
    """The exponential of the entropy of the eigenvalues as weights; negative ones count as 0."""
    weights = values.clamp(min=0.0)
    largest = float(weights.max())
    if largest == 0.0:
        return 0.0
    weights = weights / largest
    entropy = float(torch.special.entr(weights / weights.sum()).sum())
    # Rounding can move the result out of [1, D].
    return min(max(math.exp(entropy), 1.0), float(values.numel()))
