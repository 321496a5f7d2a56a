"""The numerical rank and the effective rank of a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_finite_number, value_error
from ._kernels import scalar
from ._summary import spectral_summary


def effective_rank(kernel: Tensor, *, eps: float | torch.dtype | None = None) -> Tensor:
    """The entropic rank, exp(-Σ p_k ln p_k) with the normalized eigenvalues p_k = λ_k / Σ λ_l.

    It counts directions weighted by their eigenvalues: D for the identity, 1 for a kernel of rank
    one, and never more than the rank (Roy and Vetterli 2007, "The effective rank: a measure of
    effective dimensionality", EUSIPCO, for singular values instead of eigenvalues). Negative
    eigenvalues within the noise floor count as 0. The zero kernel has effective rank 0.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        eps: The precision at which the kernel was computed; see `spectral_summary`.

    Returns:
        A 0-dim float64 tensor in [1, D], or 0.

    Raises:
        TypeError: As `spectral_summary`.
        ValueError: As `spectral_summary`; or the kernel is not positive semi-definite beyond its
            noise, so that its eigenvalues cannot serve as weights.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import effective_rank
        >>> round(effective_rank(torch.eye(5)).item(), 12)
        5.0
    """
    summary = spectral_summary(kernel, eps=eps)
    if not summary.is_psd:
        raise value_error(
            "kernel",
            "positive semi-definite to within its noise floor",
            f"smallest eigenvalue {summary.lambda_min:.3g} with a noise floor of "
            f"{summary.noise_floor:.3g}",
            "Compute the kernel in float64, or say with `eps` how precisely it was computed; "
            "spectrum(kernel) shows all eigenvalues.",
        )
    return scalar(summary.effective_rank, summary.eigenvalues)


def numerical_rank(
    kernel: Tensor, *, rtol: float | None = None, eps: float | torch.dtype | None = None
) -> Tensor:
    """The number of eigenvalues that can be distinguished from 0, #{k: |λ_k| > threshold}.

    For a kernel of a network it is at most the number of parameters, and less than N·O where
    samples repeat. The size |λ| is what counts, so a kernel that is not positive semi-definite
    has the rank of its matrix; `lambda_min` shows that it is not.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`; see `spectral_summary`.
        rtol: The threshold relative to max|λ|; by default the threshold is the noise floor. A
            smaller threshold counts noise as rank.
        eps: The precision at which the kernel was computed; see `spectral_summary`.

    Returns:
        A 0-dim int64 tensor in 0 … D.

    Raises:
        TypeError: As `spectral_summary`, or `rtol` is not a number.
        ValueError: As `spectral_summary`, or `rtol` is negative or not finite.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import numerical_rank
        >>> numerical_rank(torch.ones(4, 4)).item()
        1
    """
    if rtol is not None:
        rtol = check_finite_number("rtol", rtol, minimum=0.0)
    summary = spectral_summary(kernel, eps=eps)
    if rtol is None:
        return torch.tensor(summary.numerical_rank, device=summary.eigenvalues.device)
    sizes = summary.eigenvalues.abs()
    return (sizes > rtol * sizes.max()).sum()
