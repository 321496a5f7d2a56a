"""Operands and results of operators: vectors, matrices, NumPy arrays and SciPy's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._checks import check_finite, type_error, value_error

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


class Matrix(Protocol):
    """A matrix that multiplies tensors and arrays, and may not be formed."""

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that it multiplies."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the tensors that it multiplies."""
        ...


def multiplied(
    matrix: Matrix, other: object, product: Callable[[Tensor], Tensor]
) -> Tensor | NDArray[Any]:
    """Return `matrix @ other`, a tensor for a tensor and an array for an array.

    `other` is a vector `[D2]` or a matrix `[D2, M]`; `product` multiplies a tensor `[D2, M]`.
    """
    if isinstance(other, np.ndarray):
        if other.dtype.kind not in "fiub":
            raise type_error("v", "an array of real numbers", f"an array of {other.dtype}")
        tensor = torch.from_numpy(np.ascontiguousarray(other))
        found = multiplied(matrix, tensor.to(matrix.device, matrix.dtype), product)
        assert isinstance(found, Tensor)
        return found.cpu().numpy()
    v = _checked(matrix, other)
    columns = v if v.ndim == 2 else v[:, None]
    result = product(columns)
    return result if v.ndim == 2 else result[:, 0]


def _checked(matrix: Matrix, v: object) -> Tensor:
    if not isinstance(v, Tensor) or v.dtype != matrix.dtype:
        remedy = f"Convert it, for example with v.to({matrix.dtype})."
        raise type_error("v", f"a tensor of {matrix.dtype}", v, remedy)
    size, device = matrix.shape[1], matrix.device
    if v.ndim not in (1, 2) or v.shape[0] != size or v.device != device:
        expected = f"a vector [{size}] or a matrix [{size}, M] on {device}"
        raise value_error("v", expected, v)
    with torch.inference_mode(False), torch.no_grad():
        return check_finite("v", v.detach()).clone()


def as_scipy(matrix: Any, transposed: Any) -> LinearOperator:
    """Return a `LinearOperator` of float64 with products by `matrix` and by its transpose."""
    from scipy.sparse.linalg import LinearOperator  # slow to import

    def by(operator: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
        def multiply(v: NDArray[Any]) -> NDArray[Any]:
            product: NDArray[Any] = operator @ np.asarray(v, dtype=np.float64)
            return product.astype(np.float64)

        return multiply

    there, back = by(matrix), by(transposed)
    return LinearOperator(
        shape=matrix.shape,
        matvec=there,
        rmatvec=back,
        matmat=there,
        rmatmat=back,
        dtype=np.float64,
    )
