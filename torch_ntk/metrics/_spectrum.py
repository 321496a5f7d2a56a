"""The eigenvalues of a kernel, the extreme ones among them, and the condition number."""

from __future__ import annotations

import torch
from torch import Tensor

from ._kernels import scalar
from ._summary import decompose, spectral_summary


def spectrum(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> Tensor:
    """The eigenvalues of a kernel, ascending, as computed.

    They are those of (Θ + Θᵀ)/2 in float64. Nothing is clipped: a singular kernel shows
    eigenvalues of either sign of about `noise_floor(kernel)`.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        eps: The precision at which the kernel was computed; here it sets how much asymmetry is
            regarded as rounding, √eps of the largest entry. See `spectral_summary`.

    Returns:
        `[N]` or `[N·O]`, float64, on the kernel's device (the CPU for MPS).

    Raises:
        TypeError, ValueError: As `spectral_summary`.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import spectrum
        >>> spectrum(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([1., 2.], dtype=torch.float64)
    """
    return decompose(kernel, eps)[0]


def lambda_min(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> Tensor:
    """The smallest eigenvalue: the rate at which gradient flow learns the slowest direction.

    A negative value within the noise floor is returned as 0; a positive one below it is returned
    as computed, though it means no more than "at most the floor"; one below -floor is returned
    negative, since the kernel is then not positive semi-definite beyond its noise.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        eps: The precision at which the kernel was computed; see `spectral_summary`.

    Returns:
        A 0-dim float64 tensor in the kernel's unit.

    Raises:
        TypeError, ValueError: As `spectral_summary`.
    """
    summary = spectral_summary(kernel, eps=eps)
    return scalar(summary.lambda_min, summary.eigenvalues)


def lambda_max(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> Tensor:
    """The largest eigenvalue: it bounds the stable step of gradient descent on ½ Σ‖f - y‖².

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        eps: The precision at which the kernel was computed; see `spectral_summary`.

    Returns:
        A 0-dim float64 tensor in the kernel's unit.

    Raises:
        TypeError, ValueError: As `spectral_summary`.
    """
    summary = spectral_summary(kernel, eps=eps)
    return scalar(summary.lambda_max, summary.eigenvalues)


def noise_floor(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> Tensor:
    """The size below which an eigenvalue of this kernel cannot be distinguished from 0.

    It is max(D · eps · max|λ|, ‖Θ - Θᵀ‖_F / 2); see `spectral_summary`.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        eps: The precision at which the kernel was computed; see `spectral_summary`.

    Returns:
        A 0-dim float64 tensor in the kernel's unit.

    Raises:
        TypeError, ValueError: As `spectral_summary`.
    """
    summary = spectral_summary(kernel, eps=eps)
    return scalar(summary.noise_floor, summary.eigenvalues)


def condition_number(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> Tensor:
    """λ_max / λ_min: how much slower the slowest direction is learned than the fastest.

    It is infinite where λ_min does not exceed the noise floor, and so also for a kernel with a
    negative eigenvalue.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        eps: The precision at which the kernel was computed; see `spectral_summary`.

    Returns:
        A 0-dim float64 tensor in [1, ∞].

    Raises:
        TypeError, ValueError: As `spectral_summary`.
    """
    summary = spectral_summary(kernel, eps=eps)
    return scalar(summary.condition, summary.eigenvalues)
