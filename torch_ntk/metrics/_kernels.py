"""Check a tensor, convert it to float64, and read it as a kernel: the first step of each metric.

A kernel comes in one of the layouts that `torch_ntk.empirical_ntk` returns:

=================  ==================================================================
shape              as a matrix
=================  ==================================================================
``[N, N]``         itself
``[N, N, O]``      block diagonal, O blocks `[N, N]`: the outputs do not interact
``[N, N, O, O]``   `[N·O, N·O]`, entry Θ[n, m, i, j] in row (n, i) and column (m, j)
=================  ==================================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_tensor, value_error
from ..linalg import as_float64

_LAYOUTS = "a kernel of shape [N, N], [N, N, O] or [N, N, O, O]"
_LAYOUT_REMEDY = (
    "These are the shapes of empirical_ntk(model, x) for one set of inputs; the full kernel is "
    "indexed Θ[n, m, i, j], samples before outputs."
)

LOOSE_SYMMETRY = 1e-3
"""The largest relative asymmetry that is accepted by metrics that are stable under noise.

It separates rounding (1e-7 in float32, some 1e-4 in TF32) from mistakes: the kernel between two
different sets of inputs has a relative asymmetry of order 1.
"""


def as_kernel(name: str, value: object) -> Tensor:
    """`value` in float64 in one of the three layouts, its two sample axes of equal length."""
    tensor = check_tensor(name, value)
    shape = tensor.shape
    if (
        tensor.ndim not in (2, 3, 4)
        or shape[0] != shape[1]
        or (tensor.ndim == 4 and shape[2] != shape[3])
    ):
        raise value_error(name, _LAYOUTS, tensor, _LAYOUT_REMEDY)
    return as_float64(name, tensor)


def as_matrices(kernel: Tensor) -> Tensor:
    """The diagonal blocks `[B, D, D]` of a kernel's matrix; B = O for `[N, N, O]`, else 1."""
    if kernel.ndim == 2:
        return kernel.unsqueeze(0)
    if kernel.ndim == 3:
        return kernel.permute(2, 0, 1)
    size = kernel.shape[0] * kernel.shape[2]
    return kernel.permute(0, 2, 1, 3).reshape(1, size, size)


def transposed(kernel: Tensor) -> Tensor:
    """The kernel whose matrix is the transpose: Θ[m, n, j, i]."""
    swapped = kernel.transpose(0, 1)
    return swapped.transpose(2, 3) if kernel.ndim == 4 else swapped


def check_symmetric(name: str, kernel: Tensor, tolerance: float, remedy: str = "") -> Tensor:
    """Return `kernel` if max|Θ - Θᵀ| is at most `tolerance`·max|Θ|, else raise `ValueError`."""
    largest = float(kernel.abs().max())
    difference = float((kernel - transposed(kernel)).abs().max())
    if difference <= tolerance * largest:
        return kernel
    raise value_error(
        name,
        f"symmetric to a relative tolerance of {tolerance:.2g}",
        f"a kernel with max|Θ - Θᵀ| = {difference:.3g}, which is {difference / largest:.3g} "
        "of its largest entry",
        remedy or "This is not defined for the kernel between two different sets of inputs.",
    )


def check_same_shape(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise `ValueError` unless both tensors have the same shape."""
    if a.shape != b.shape:
        raise value_error(
            name_a,
            f"of the shape of `{name_b}`, {tuple(b.shape)}",
            f"shape {tuple(a.shape)}",
            "Compute both on the same samples, with the same `output`.",
        )


def check_same_device(name_a: str, a: torch.device, name_b: str, b: torch.device) -> None:
    """Raise `ValueError` unless both devices are the same."""
    if a != b:
        raise value_error(
            name_a,
            f"on the device of `{name_b}`, {b}",
            f"a tensor on {a}",
            f"Move one of them, for instance with .to({str(b)!r}).",
        )


def frobenius(tensor: Tensor) -> float:
    """sqrt(Σ x²) of a float64 tensor, without overflow or underflow of the squares."""
    if tensor.numel() == 0:
        return 0.0
    largest = float(tensor.abs().max())
    if largest == 0.0 or math.isinf(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(tensor / largest))


def scalar(value: float, like: Tensor) -> Tensor:
    """`value` as a 0-dim float64 tensor on the device of `like`."""
    return torch.tensor(value, dtype=torch.float64, device=like.device)


def sample_centered(kernel: Tensor) -> Tensor:
    """HΘH over the two sample axes, H = 1 - 11ᵀ/N, for each pair of outputs."""
    rows = kernel - kernel.mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)


def is_constant(centered: Tensor, original: Tensor, dtype: torch.dtype) -> bool:
    """Whether a kernel is zero after centering, up to the rounding of entries stored in `dtype`."""
    return frobenius(centered) <= _rounding(original, dtype) * frobenius(original)


def cosine(value: float, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """A computed cosine, corrected for rounding.

    It is clamped to [-1, 1], and a value just below 0 becomes 0, because the cosine between
    positive semi-definite matrices is not negative.
    """
    if -_rounding(kernel, dtype) <= value < 0.0:
        value = 0.0
    return scalar(min(max(value, -1.0), 1.0), kernel)


def _rounding(kernel: Tensor, dtype: torch.dtype) -> float:
    """The relative rounding of entries stored in `dtype`, and of their means over N in float64."""
    return torch.finfo(dtype).eps + kernel.shape[0] * torch.finfo(torch.float64).eps
