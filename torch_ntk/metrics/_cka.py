"""The alignment of two kernels with each other."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import value_error
from ._kernels import (
    LOOSE_SYMMETRY,
    as_kernel,
    check_same_device,
    check_same_shape,
    check_symmetric,
    cosine,
    frobenius,
    is_constant,
    sample_centered,
)


def cka(kernel_a: Tensor, kernel_b: Tensor) -> Tensor:
    """Centered kernel alignment of two kernels over the same samples.

        ⟨HAH, HBH⟩_F / (‖HAH‖_F ‖HBH‖_F),   H = 1 - 11ᵀ/N

    which is HSIC(A, B) / √(HSIC(A, A) HSIC(B, B)) with the plain (biased) estimator of HSIC
    (Kornblith et al. 2019, "Similarity of neural network representations revisited", section 3).
    It does not change when a kernel is scaled or a constant is added to it, nor when both are
    rotated alike among the directions orthogonal to the constant one. Being biased, it is not 0
    for unrelated kernels of few samples.

    Kernels with output axes are centred over the samples for each pair of outputs, H ⊗ 1: each
    output's mean gradient is subtracted. For `[N, N, O]` the matrix is block diagonal.

    Args:
        kernel_a: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`, symmetric up to rounding.
        kernel_b: A kernel of the same shape, on the same device.

    Returns:
        A 0-dim float64 tensor in [0, 1] for positive semi-definite kernels, [-1, 1] otherwise.

    Raises:
        TypeError: An argument is not a dense tensor of real floating-point numbers.
        ValueError: An argument is no kernel by its shape, not symmetric or not finite; shapes or
            devices differ; or nothing is left of a kernel after centering, as with N = 1.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import cka
        >>> kernel = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> round(cka(kernel, 5.0 * kernel + 1.0).item(), 12)
        1.0
    """
    a = check_symmetric("kernel_a", as_kernel("kernel_a", kernel_a), LOOSE_SYMMETRY)
    b = check_symmetric("kernel_b", as_kernel("kernel_b", kernel_b), LOOSE_SYMMETRY)
    check_same_device("kernel_a", kernel_a.device, "kernel_b", kernel_b.device)
    check_same_shape("kernel_a", a, "kernel_b", b)
    centered_a = _unit("kernel_a", a, kernel_a)
    centered_b = _unit("kernel_b", b, kernel_b)
    value = float((centered_a * centered_b).sum())
    coarser = max((kernel_a.dtype, kernel_b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    return cosine(value, a, coarser)


def _unit(name: str, kernel: Tensor, given: Tensor) -> Tensor:
    """The centred kernel, scaled to Frobenius norm 1."""
    centered = sample_centered(kernel)
    if is_constant(centered, kernel, given.dtype):
        raise value_error(
            name,
            "a kernel that differs between samples",
            "one that is zero up to rounding after centering",
            "Pass at least two different samples.",
        )
    return centered / frobenius(centered)
