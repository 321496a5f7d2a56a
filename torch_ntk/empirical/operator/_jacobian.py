"""The Jacobian of the outputs with respect to the parameters, as a linear operator."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._checks import check_tensor, type_error, value_error
from ..._functional import plain_name
from ..._types import Parameters
from ._kernel_map import KernelMap
from ._vectors import as_scipy, multiplied

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


class JacobianOperator:
    """The Jacobian `J = ∂f(x1)/∂θ` `[D, P]` with `Θ = J Jᵀ`; `NTKOperator.jacobian` returns it.

    A `precondition` of the operator does not change J. Row `n·O + i` is the gradient of output i of
    sample n. The columns are the P entries of the selected parameters, in the order of
    `parameters` and each in row-major order, as in `torch.nn.utils.parameters_to_vector`. Every
    product is compared with plain backward passes of the model, as products with the kernel are.

    Example:
        >>> import torch
        >>> from torch_ntk import NTKOperator
        >>> net = torch.nn.Linear(2, 1).double()
        >>> j = NTKOperator(net, torch.tensor([[3.0, 4.0]], dtype=torch.float64)).jacobian
        >>> gradient = j.T @ torch.ones(1, dtype=torch.float64)
        >>> gradient
        tensor([3., 4., 1.], dtype=torch.float64)
        >>> j.by_name(gradient)["bias"]
        tensor([1.], dtype=torch.float64)
        >>> j @ gradient
        tensor([26.], dtype=torch.float64)
    """

    __array_ufunc__ = None

    def __init__(self, kernel: KernelMap) -> None:
        self._kernel, self._is_transposed = kernel, False

    @property
    def parameters(self) -> dict[str, torch.Size]:
        """The names and shapes of the parameters; a complex one has a last axis of 2."""
        return {plain_name(n): p.shape for n, p in self._kernel.fn.params.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """`(D, P)`, or `(P, D)` if this is the transpose."""
        size = sum(p.numel() for p in self._kernel.fn.params.values())
        rows = self._kernel.left.size
        return (size, rows) if self._is_transposed else (rows, size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors that it multiplies."""
        return self._kernel.fn.dtype

    @property
    def device(self) -> torch.device:
        """The device of the vectors that it multiplies."""
        return self._kernel.fn.device

    @property
    def T(self) -> JacobianOperator:
        """The transpose `Jᵀ`, whose products are vectors `[P]` or matrices `[P, M]`."""
        other = copy.copy(self)
        other._is_transposed = not self._is_transposed
        return other

    def __repr__(self) -> str:
        """Return the shape and dtype."""
        return f"JacobianOperator(shape={self.shape}, dtype={self.dtype})"

    @overload
    def __matmul__(self, other: Tensor | Mapping[str, Tensor]) -> Tensor: ...

    @overload
    def __matmul__(self, other: NDArray[Any]) -> NDArray[Any]: ...

    def __matmul__(
        self, other: Tensor | Mapping[str, Tensor] | NDArray[Any]
    ) -> Tensor | NDArray[Any]:
        """Return `J w` for a vector `[P]`, a matrix `[P, M]` or `{name: tensor}`.

        The transpose returns `Jᵀ v` for a vector `[D]` or a matrix `[D, M]`.

        Raises:
            TypeError: The operand is not a tensor, an array of real numbers or a mapping, or has
                another dtype.
            ValueError: Its length, names, shapes or device differ, or it is not finite.
        """
        if isinstance(other, Mapping):
            other = self._flat(other)
        product = self._transposed_times if self._is_transposed else self._times
        return multiplied(self, other, product)

    def _times(self, matrix: Tensor) -> Tensor:
        params = self._kernel.fn.params
        rows = matrix.T.split([p.numel() for p in params.values()], dim=1)  # type: ignore[no-untyped-call]
        pairs = zip(params.items(), rows, strict=True)
        return self._kernel.push({n: r.reshape(len(r), *p.shape) for (n, p), r in pairs}).T

    def _transposed_times(self, matrix: Tensor) -> Tensor:
        found = self._kernel.pull(matrix.T)
        return torch.cat([g.reshape(len(g), -1) for g in found.values()], dim=1).T

    def by_name(self, vector: Tensor) -> Parameters:
        """Return a vector `[P]` as `{name: tensor}`, each in the shape of its parameter.

        Raises:
            TypeError: `vector` is not a tensor.
            ValueError: It has another shape.
        """
        size = self.shape[0 if self._is_transposed else 1]
        if check_tensor("vector", vector).shape != (size,):
            raise value_error("vector", f"of shape [{size}], one entry per parameter", vector)
        shapes = self.parameters
        parts = vector.split([s.numel() for s in shapes.values()])  # type: ignore[no-untyped-call]
        return {n: v.reshape(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}

    def _flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return `{name: tensor}` as a vector `[P]`."""
        if self._is_transposed:
            raise type_error("v", "a vector [D] or a matrix [D, M] for the transpose", named)
        shapes = self.parameters
        if set(named) != set(shapes):
            missing = [n for n in shapes if n not in named]
            other = [n for n in named if n not in shapes]
            raise value_error(
                "v",
                f"a mapping with the names of the {len(shapes)} selected parameters",
                f"one without {missing[:4]}" if missing else f"one with {other[:4]} besides",
                "They are the keys of .parameters; `params` of NTKOperator selects them.",
            )
        for n, shape in shapes.items():
            if check_tensor(f"v[{n!r}]", named[n]).shape != shape:
                raise value_error(f"v[{n!r}]", f"of shape {tuple(shape)}", named[n])
        return torch.cat([named[n].detach().reshape(-1) for n in shapes])

    def to_scipy(self) -> LinearOperator:
        """Return a `scipy.sparse.linalg.LinearOperator` of float64, for `lsqr` or `svds`."""
        return as_scipy(self, self.T)
