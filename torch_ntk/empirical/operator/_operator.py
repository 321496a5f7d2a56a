"""The empirical kernel as a linear operator."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._checks import (
    check_bool,
    check_choice,
    check_finite,
    check_positive_int,
    type_error,
    value_error,
)
from ..._functional import evaluating_on, model_function
from ..._types import BatchLike, ForwardFn, ModelLike, ParameterSelection
from ...memory import budget, in_bytes, limited
from .._empirical_ntk import NOT_FINITE
from .._job import KernelJob
from .._outputs import finish
from .._parts import WHOLE, keys_of
from .._result_size import check_fits
from ..inspect import forward_operations, inspect_forward
from ..methods import METHODS
from ..structured import StructuredMethod, UseRecorder
from ._lanczos import Eigenpairs, SymmetricProduct, extreme
from ._products import Products
from ._stochastic_trace import TraceEstimate, mean_and_error, on_sphere, signs, xtrace

OperatorOutput = Literal["full", "trace", "mean", "pseudo"]
_OUTPUTS = ("full", "trace", "mean", "pseudo")

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


class NTKOperator:
    r"""The empirical NTK of the samples `x` as a symmetric linear operator `[D, D]`.

    A product is `Θ v = J (Jᵀ v)`: one backward pass and one forward-mode pass over all samples,
    in blocks, whose memory grows neither with the number of samples nor with `N·P`. Entry
    `n·O + i` of a vector belongs to output i of sample n (D = N·O) for `output="full"`, entry n
    to sample n (D = N) otherwise; `"trace"` and `"mean"` take O such pairs of passes.

    The operator is a snapshot: parameters, buffers and samples are copied once, when it is made,
    and training that goes on afterwards does not change it. The module's code and its other
    attributes are the caller's: if they change the outputs of the first sample, the next product
    raises. Nothing of the evaluation can be seen
    afterwards, as with `torch_ntk.empirical_ntk`.

    Args:
        model: As in `torch_ntk.empirical_ntk`.
        x: A batch of N samples.
        output: `"full"`, `"trace"`, `"mean"` or `"pseudo"`, as in `torch_ntk.empirical_ntk`.
        params: As in `torch_ntk.empirical_ntk`.
        batch_size: Samples per block; None chooses from the memory.
        dtype: `torch.float32` or `torch.float64` to compute in; None is the model's own, and
            float32 for a half-precision model.
        max_memory: Bytes that a product may take, as an integer or like `"2GB"`; None follows
            from what is free.
        progress: Show a progress bar over samples.
        forward_fn: As in `torch_ntk.empirical_ntk`.
        check: Whether every product is compared with plain backward passes of the model itself,
            made once for the operator.

    Attributes:
        shape: `(D, D)`.
        dtype, device: Of the vectors that it multiplies.

    Raises:
        TypeError, ValueError: As `torch_ntk.empirical_ntk`; also if no way of multiplying by the
            Jacobian agrees with the model's backward pass.
        MemoryError: A single sample does not fit in memory.

    References:
        Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent kernel" (2022).

    Example:
        >>> import torch
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> theta = NTKOperator(torch.nn.Linear(3, 1).double(), x)
        >>> theta @ torch.ones(3, dtype=torch.float64)  # Θ = x xᵀ + 1
        tensor([4., 4., 4.], dtype=torch.float64)
    """

    # NumPy must not take an operator for a scalar object.
    __array_ufunc__ = None

    def __init__(
        self,
        model: ModelLike,
        x: BatchLike,
        *,
        output: OperatorOutput = "full",
        params: ParameterSelection = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        max_memory: int | str | None = None,
        progress: bool = False,
        forward_fn: ForwardFn | None = None,
        check: bool = True,
    ) -> None:
        check_choice("output", output, _OUTPUTS, "A diagonal is not a matrix between samples.")
        if batch_size is not None:
            check_positive_int("batch_size", batch_size, "None chooses from the free memory.")
        check_bool("progress", progress)
        check_bool("check", check)
        self._model = model
        self._memory = None if max_memory is None else in_bytes(max_memory)
        self._progress, self._batch_size, self._check = progress, batch_size, check
        self.output = output
        with evaluating_on(model, x, forward_fn), limited(self._memory):
            fn = model_function(model, params, dtype, forward_fn)
            self._x = fn.input("x", x)
            recorder = UseRecorder()
            forward = inspect_forward(fn, "x", self._x, recorder)
            self._outputs, self._recorder = forward.outputs, recorder
            if output == "pseudo":
                fn, forward = fn.pseudo(), replace(forward, outputs=1)
            self._fn, self._forward = fn, forward
            self._products = Products(fn, self._x, forward, batch_size, check)
        n = len(self._x)
        size = n * self._outputs if output == "full" else n
        self.shape = (size, size)
        self.dtype, self.device = fn.dtype, fn.device

    def __repr__(self) -> str:
        """Sizes and kind."""
        return f"NTKOperator(shape={self.shape}, output={self.output!r}, dtype={self.dtype})"

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: NDArray[Any]) -> NDArray[Any]: ...

    def __matmul__(self, other: Tensor | NDArray[Any]) -> Tensor | NDArray[Any]:
        """`Θ v` of a vector `[D]` or a matrix `[D, M]`; an array gives an array.

        Raises:
            TypeError: Not a tensor or an array of real numbers, or a tensor of another dtype.
            ValueError: Another length, another device, NaN or infinity.
        """
        if isinstance(other, np.ndarray):
            if other.dtype.kind not in "fiub":
                came = f"an array of {other.dtype}"
                raise type_error("v", "an array of real numbers", came)
            tensor = torch.as_tensor(np.ascontiguousarray(other), dtype=self.dtype)
            return (self @ tensor.to(self.device)).cpu().numpy()
        v = self._checked(other)
        matrix = v if v.ndim == 2 else v[:, None]
        result = self._multiply(matrix)
        return result if v.ndim == 2 else result[:, 0]

    def _checked(self, v: object) -> Tensor:
        if not isinstance(v, Tensor) or v.dtype != self.dtype:
            remedy = f"Convert it, for example with v.to({self.dtype})."
            raise type_error("v", f"a tensor of {self.dtype}", v, remedy)
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[0] or v.device != self.device:
            size = self.shape[0]
            expected = f"a vector [{size}] or a matrix [{size}, M] on {self.device}"
            raise value_error("v", expected, v)
        with torch.inference_mode(False), torch.no_grad():
            return check_finite("v", v.detach()).clone()

    def _multiply(self, matrix: Tensor) -> Tensor:
        """`[D, M]` to `[D, M]`."""
        n, o, count = len(self._x), self._forward.outputs, matrix.shape[1]
        each = self.output in ("trace", "mean")
        passes = count * (o if each else 1)
        with (
            self._evaluating(),
            limited(self._memory),
            self._products.bar(passes, 2, self._progress) as advance,
        ):
            if each:
                result = self._products.with_traced_kernel(matrix, advance)
            else:
                v = matrix.T.reshape(count, n, o)
                result = self._products.with_kernel(v, advance).reshape(count, n * o).T
            result = result / o if self.output == "mean" else result.contiguous()
            return check_finite("product", result, NOT_FINITE)

    def to_dense(self) -> Tensor:
        """The matrix `[D, D]`, equal to that of `torch_ntk.empirical_ntk`.

        Raises:
            ValueError: It does not fit in memory.
        """
        n, o = len(self._x), self._outputs
        size = check_fits(self._fn, self.output, n, n, o, 1, self._memory)
        with (
            self._evaluating(),
            limited(None if self._memory is None else self._memory - size),
            self._products.bar(1, 1, self._progress) as advance,
        ):
            job = replace(self._job(), advance=advance)
            kernel = finish(METHODS["auto"](job, self._recorder)[WHOLE], self.output, o)
            check_finite("kernel", kernel, NOT_FINITE)
            if self.output == "full":
                kernel = kernel.permute(0, 2, 1, 3).reshape(self.shape)
            return kernel

    def _evaluating(self) -> AbstractContextManager[None]:
        fn, forward = self._fn, self._forward
        return evaluating_on(self._model, self._x.value, fn.forward_fn, forward.keeps_hooks)

    def _job(self) -> KernelJob:
        """The dense kernel."""
        keys = keys_of(self._fn.params, None)
        output, fn, forward = self.output, self._fn, self._forward
        return KernelJob(fn, self._x, None, output, forward, keys, self._batch_size, self._check)

    def _is_dense_cheaper(self) -> bool:
        """Whether the matrix takes fewer operations than the products of a Lanczos method.

        With F the operations of a forward pass, a product takes about 5 F N, O times as much where
        outputs are summed, and the method 40 of them; the matrix takes 2 F N for each output, and
        what the plan counts for its contractions.
        """
        size, n, o = self.shape[0], len(self._x), self._outputs
        if 3 * 8 * size**2 > budget(self.device):
            return False
        with self._evaluating():
            forward = forward_operations(self._fn, self._x)
            plan = StructuredMethod(self._job(), self._recorder.recorded()).plan
        passes = 40 * 5 * (o if self.output in ("trace", "mean") else 1)
        contraction = sum(cost.operations for cost in plan.costs.values())
        rest = sum(self._fn.params[name].numel() for name in plan.uses.rest)
        contraction += float(rest) * size**2
        return 2 * forward * n * (o + 1) + contraction <= passes * forward * n

    def to_scipy(self) -> LinearOperator:
        """A `scipy.sparse.linalg.LinearOperator` of float64.

        Vectors are converted to this operator's `dtype`, in which products are computed, and
        back: for the accuracy of float64 make the operator with `dtype=torch.float64`.
        """
        from scipy.sparse.linalg import LinearOperator  # slow to import

        def multiply(v: NDArray[Any]) -> NDArray[Any]:
            return (self @ np.asarray(v, dtype=np.float64)).astype(np.float64)

        return LinearOperator(
            shape=self.shape,
            matvec=multiply,
            rmatvec=multiply,
            matmat=multiply,
            rmatmat=multiply,
            dtype=np.float64,
        )

    def in_double(self, matrix: Tensor) -> Tensor:
        """`Θ v` of a float64 matrix `[D, M]` on the CPU, likewise."""
        return (self @ matrix.to(device=self.device, dtype=self.dtype)).double().cpu()

    def eigsh(
        self,
        k: int = 1,
        which: Literal["LA", "SA"] = "LA",
        *,
        tol: float | None = None,
        max_products: int = 1000,
    ) -> Eigenpairs:
        """The `k` largest (`"LA"`) or smallest (`"SA"`) eigenvalues, with verified residuals.

        The largest come from ARPACK's Lanczos method and products alone, or from the dense matrix
        where this takes fewer operations and fits in memory. The smallest do not:
        they lie close together, where Lanczos methods converge to too large values or not at
        all. They are taken from the dense matrix, which must therefore fit in memory, in float64.

        Args:
            k: How many, fewer than D for `"LA"`.
            which: Which end of the spectrum.
            tol: Relative tolerance of the Lanczos method; None is 1e-12 in float64 and 1e-6 in
                float32.
            max_products: About how many products the Lanczos method may take.

        Raises:
            ValueError: `k` exceeds D; the smallest are asked of an operator in float32, or of one
                whose matrix does not fit in memory.
            RuntimeError: The Lanczos method did not converge.
        """
        product = SymmetricProduct(
            self.shape[0],
            self.dtype,
            self.device,
            self.in_double,
            self.to_dense,
            self._is_dense_cheaper,
        )
        with limited(self._memory):
            return extreme(product, k, which, tol, max_products)

    def trace(
        self,
        method: Literal["hutchinson", "xtrace"] = "hutchinson",
        n_samples: int = 32,
        generator: torch.Generator | None = None,
    ) -> TraceEstimate:
        """An unbiased estimate of the trace and its standard error.

        `"hutchinson"` averages `zᵀΘz = ‖Jᵀz‖²` over random signs z, a backward pass each; its
        error falls like `1/sqrt(n_samples)`. `"xtrace"` takes `n_samples` products, half of them
        with random vectors and half with a basis of what came out; where the spectrum decays, as
        that of kernels does, its error falls much faster.

        Args:
            method: The estimator.
            n_samples: Backward passes, or products; at least 2 and 4.
            generator: Of the random numbers; None takes the same ones in every call. The
                global generators are never used.

        Raises:
            ValueError: `n_samples` is too small, or for `"xtrace"` not less than 2 D.

        References:
            Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
            smoothing splines" (1990). Epperly, Tropp, Webber, "XTrace: Making the most of every
            sample in stochastic trace estimation" (2024).
        """
        check_choice("method", method, ("hutchinson", "xtrace"))
        check_positive_int("n_samples", n_samples)
        size, half = self.shape[0], n_samples // 2
        if method == "xtrace":
            if not 2 <= half < size:
                expected = f"at least 4 and less than {2 * size} for 'xtrace'"
                remedy = "For a small operator take to_dense().trace()."
                raise value_error("n_samples", expected, n_samples, remedy)
            return xtrace(self.in_double, on_sphere(half, size, generator).T.cpu())
        if n_samples < 2:
            expected = "at least 2, for the error of the estimate"
            raise value_error("n_samples", expected, n_samples)
        # The traces of the full kernel and of "trace" are the same sum over outputs, so that
        # signs for samples and outputs serve both, with one pass for each vector.
        n, o = len(self._x), self._forward.outputs
        z = signs(n_samples, n * o, generator).to(device=self.device, dtype=self.dtype)
        z = z.view(n_samples, n, o)
        with (
            self._evaluating(),
            limited(self._memory),
            self._products.bar(n_samples, 1, self._progress) as advance,
        ):
            values = self._products.squared_norms(z, advance)
            check_finite("trace", values, NOT_FINITE)
        return mean_and_error(values / o if self.output == "mean" else values)
