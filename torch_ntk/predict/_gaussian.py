"""The result type of predictions with a covariance, and checks of their arguments."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .._checks import check_tensor, type_error, value_error
from ._layout import Layout


class Gaussian(NamedTuple):
    """A normal distribution of outputs on M test samples.

    Attributes:
        mean: `[M]` or `[M, O]`, with a leading axis of times where several were asked for.
        covariance: The covariance between samples, `[M, M]`, the same for every output, with
            independent outputs; for full kernels `[M, M, O, O]`. `None` if it was not asked for.
    """

    mean: Tensor
    covariance: Tensor | None


class KernelPair(NamedTuple):
    """The two kernels of one infinitely wide network between two sets of inputs.

    Anything else with these two attributes serves as well, such as what
    `analytic_kernels` returns.

    Attributes:
        nngp: Covariance of the outputs at initialization.
        ntk: The neural tangent kernel.
    """

    nngp: Tensor
    ntk: Tensor


class HasKernels(Protocol):
    """Any object with the attributes `nngp` and `ntk`."""

    @property
    def nngp(self) -> Tensor:
        """Covariance of the outputs at initialization."""
        ...

    @property
    def ntk(self) -> Tensor:
        """The neural tangent kernel."""
        ...


def check_pair(name: str, value: object) -> HasKernels:
    """Return `value` if it has the attributes `nngp` and `ntk`, else raise `TypeError`."""
    if hasattr(value, "nngp") and hasattr(value, "ntk"):
        pair: HasKernels = value
        return pair
    raise type_error(
        name,
        "a pair of kernels with the attributes `nngp` and `ntk`",
        value,
        "Use analytic_kernels(model, x1, x2), or KernelPair(nngp=..., ntk=...).",
    )


def read_square(layout: Layout, name: str, value: object, samples: int) -> Tensor:
    """The kernel of the test samples with themselves, checked to be symmetric, in float64."""
    tensor = check_tensor(name, value)
    matrix = layout.read_kernel(name, tensor, samples, samples)
    largest = float(matrix.abs().max())
    worst = float((matrix - matrix.mT).abs().max())
    tolerance = float(torch.finfo(tensor.dtype).eps) ** 0.5
    if worst > tolerance * largest:
        raise value_error(
            name,
            f"symmetric to a relative tolerance of {tolerance:.2g}",
            f"a matrix with max|A - Aᵀ| = {worst:.3g}, its largest entry being {largest:.3g}",
            "It is the kernel of the test samples with themselves.",
        )
    return symmetrized(matrix)


def symmetrized(matrix: Tensor) -> Tensor:
    """(A + Aᵀ)/2, which removes the asymmetry of rounding; leading axes are kept."""
    return 0.5 * matrix + 0.5 * matrix.mT


def promoted(dtype: torch.dtype, *tensors: Tensor | None) -> torch.dtype:
    """The promoted dtype of `dtype` and of all tensors that are not None."""
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
