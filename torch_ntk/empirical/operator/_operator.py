"""The empirical kernel as a linear operator."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._checks import (
    check_choice,
    check_positive_int,
    value_error,
)
from ..._functional import ModelFunction, evaluating_on, model_function
from ..._types import BatchLike, ForwardFn, ModelLike, ParameterSelection, PreconditionLike
from ...linalg import as_float64
from ...memory import in_bytes, limited
from .._computation import second_input
from .._coupled import CoupledBatches
from .._empirical_ntk import check_probes, check_settings
from .._precondition import precondition_of
from .._probed import probing
from ..inspect import inspect_forward
from ..structured import UseRecorder
from ._jacobian import JacobianOperator
from ._kernel_map import Form, KernelMap, Settings
from ._lanczos import Eigenpairs, extreme
from ._log_determinant import log_determinant
from ._products import Products
from ._solve import Solution, solve
from ._spectral_density import SpectralDensity, spectral_density
from ._stochastic_trace import TraceEstimate, mean_and_error, on_sphere, signs, xtrace
from ._symmetric_product import SymmetricProduct
from ._vectors import as_scipy, multiplied

OperatorOutput = Literal["full", "trace", "mean", "pseudo", "probed"]
_OUTPUTS = get_args(OperatorOutput)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


class NTKOperator:
    r"""The empirical NTK between the samples `x1` and `x2` as a linear operator `[D1, D2]`.

    A product is `Θ v = J(x1) (J(x2)ᵀ v)`: a backward pass over the samples `x2` and a forward-mode
    pass over the samples `x1`. Both are in blocks, so that their memory grows neither with the
    number of samples nor with `N·P`. For `output="full"` entry `n·O + i` of a vector belongs to
    output i of sample n (D = N·O), otherwise entry n to sample n (D = N). `"trace"` and `"mean"`
    need O such pairs of passes, and `"probed"` one for each probe. Without `x2` the operator is
    symmetric, and has eigenvalues and a trace. With `precondition` it is `J(x1) P J(x2)ᵀ`.

    The operator is a snapshot: it copies parameters, buffers and samples once, and further training
    of the model does not change it. It uses the module's code and other attributes; if a change of
    these changes the outputs of the first sample, the next product raises an error. As with
    `torch_ntk.empirical_ntk`, an evaluation does not change the state of the model.

    Args:
        model: As in `torch_ntk.empirical_ntk`.
        x1: A batch of N1 samples.
        x2: A batch of N2 samples with the same structure; None means x2 = x1.
        output: `"full"`, `"trace"`, `"mean"`, `"pseudo"` or `"probed"`, as in
            `torch_ntk.empirical_ntk`. `"probed"` is the estimate itself, which is a kernel, too;
            its standard error comes from `torch_ntk.empirical_ntk`.
        params: As in `torch_ntk.empirical_ntk`.
        batch_size: The number of samples per block; None chooses from the memory.
        dtype: The dtype of the computation, `torch.float32` or `torch.float64`; None is the
            model's own dtype, and float32 for a half-precision model.
        max_memory: The bytes that a product may take, as an integer or like `"2GB"`; None chooses
            from the free memory.
        progress: Whether to show a progress bar over samples.
        forward_fn, coupled, training, precondition, probes, seed: As in `torch_ntk.empirical_ntk`.
        check: Whether every product is compared with plain backward passes of the model itself,
            which are made once for the operator.

    Raises:
        TypeError, ValueError: As in `torch_ntk.empirical_ntk`; also if no method for products with
            the Jacobian agrees with the model's backward pass.
        MemoryError: A single sample does not fit in memory.

    References:
        Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent kernel" (2022).

    Example:
        >>> import torch
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> theta = NTKOperator(torch.nn.Linear(3, 1).double(), x)
        >>> theta @ torch.ones(3, dtype=torch.float64)  # Θ = x xᵀ + 1
        tensor([4., 4., 4.], dtype=torch.float64)
        >>> NTKOperator(torch.nn.Linear(3, 1).double(), x[:1], x).T.shape
        (3, 1)
    """

    # Otherwise NumPy would treat an operator as a scalar.
    __array_ufunc__ = None

    def __init__(
        self,
        model: ModelLike,
        x1: BatchLike,
        x2: BatchLike | None = None,
        *,
        output: OperatorOutput = "full",
        params: ParameterSelection = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        max_memory: int | str | None = None,
        progress: bool = False,
        forward_fn: ForwardFn | None = None,
        coupled: bool = False,
        training: bool = False,
        precondition: PreconditionLike = None,
        probes: int = 8,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        check_choice("output", output, _OUTPUTS, "A diagonal is not a matrix between samples.")
        if output == "probed":
            check_probes(probes, seed)
        check_settings(coupled, training, batch_size, progress, check)
        memory = None if max_memory is None else in_bytes(max_memory)
        settings = Settings(memory, batch_size, check, progress, training)
        batches = CoupledBatches(x1, x2, output, probes, seed) if coupled else None
        if batches is not None:
            model, forward_fn = batches.model(model, forward_fn)
            x1, x2 = batches.sides[0], (*batches.sides, None)[1]
        with evaluating_on(model, x1, forward_fn, training=training), limited(memory):
            fn = model_function(model, params, dtype, forward_fn, coupled)
            scales = precondition_of(precondition, fn)
            a = fn.input("x1", x1)
            b = None if x2 is None or x2 is x1 else second_input(fn, a, x2)
            recorder = UseRecorder()
            forward = of_second = inspect_forward(fn, "x1", a, recorder)
            if batches is not None:
                outputs = forward.outputs // batches.rows[0]
                of_second = forward if b is None else inspect_forward(fn, "x2", b)
            else:
                fn, outputs = _with_fewer_outputs(fn, forward.outputs, output, probes, seed)
                forward = of_second = replace(forward, outputs=outputs)
            left = Products(fn, a, forward, batch_size, check)
            right = left if b is None else Products(fn, b, of_second, batch_size, check)
        self.output: OperatorOutput = output
        form: Form = "mean" if output == "probed" else output
        self._map = KernelMap(fn, forward, recorder, left, right, outputs, form, settings, scales)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape `(D1, D2)`."""
        return self._map.shape

    @property
    def outputs(self) -> int:
        """The number of rows per sample: O for `output="full"`, otherwise 1."""
        return self._map.outputs if self.output == "full" else 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors that it multiplies."""
        return self._map.fn.dtype

    @property
    def device(self) -> torch.device:
        """The device of the vectors that it multiplies."""
        return self._map.fn.device

    @property
    def T(self) -> NTKOperator:
        """The operator `Θ(x2, x1)`, which shares all copies; without `x2` the operator itself."""
        if self._map.is_symmetric:
            return self
        other = copy.copy(self)
        other._map = self._map.transposed
        return other

    @property
    def jacobian(self) -> JacobianOperator:
        """The Jacobian `J` `[D1, P]` of the samples `x1`, for `output="full"` and `"pseudo"`.

        It does not contain the P of `precondition`.

        Raises:
            ValueError: The kernel is a sum of the kernels of single outputs, and not `J Jᵀ`.
        """
        if self._map.is_sum:
            raise value_error(
                "output",
                "'full' or 'pseudo' for the Jacobian of the rows",
                f"{self.output!r}, a sum of kernels of single outputs",
                "NTKOperator(…, output='full').jacobian is that of all outputs.",
            )
        return JacobianOperator(self._map)

    def __repr__(self) -> str:
        """Return the shape, output and dtype."""
        return f"NTKOperator(shape={self.shape}, output={self.output!r}, dtype={self.dtype})"

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: NDArray[Any]) -> NDArray[Any]: ...

    def __matmul__(self, other: Tensor | NDArray[Any]) -> Tensor | NDArray[Any]:
        """Return `Θ v` for a vector `[D2]` or a matrix `[D2, M]`; an array gives an array.

        Raises:
            TypeError: The operand is not a tensor or an array of real numbers, or has another
                dtype.
            ValueError: Its length or device differs, or it is not finite.
        """
        return multiplied(self, other, self._map.multiply)

    def to_dense(self) -> Tensor:
        """Return the matrix `[D1, D2]`, equal to that of `torch_ntk.empirical_ntk`.

        Raises:
            ValueError: It does not fit in memory.
        """
        return self._map.dense()

    def to_scipy(self) -> LinearOperator:
        """Return a `scipy.sparse.linalg.LinearOperator` of float64.

        Products are computed in this operator's `dtype`, to and from which vectors are converted.
        For the accuracy of float64 make the operator with `dtype=torch.float64`.
        """
        return as_scipy(self, self.T)

    def eigsh(
        self,
        k: int = 1,
        which: Literal["LA", "SA"] = "LA",
        *,
        tol: float | None = None,
        max_products: int = 1000,
    ) -> Eigenpairs:
        """Return the `k` largest (`"LA"`) or smallest (`"SA"`) eigenvalues, with residuals.

        The largest ones are computed by ARPACK's Lanczos method from products alone, or from the
        dense matrix if this takes fewer operations and fits in memory. The smallest ones are close
        together, and Lanczos methods converge to values that are too large, or not at all. So they
        are computed from the dense matrix, which must be in float64 and fit in memory. The
        residuals come from products after the eigenvalues were found.

        Args:
            k: The number of eigenvalues, at most D.
            which: The end of the spectrum.
            tol: The relative tolerance of the Lanczos method; None is 1e-12 in float64 and 1e-6 in
                float32.
            max_products: The approximate largest number of products of the Lanczos method.

        Raises:
            ValueError: There is an `x2`; `k` exceeds D; or the smallest eigenvalues are requested
                from an operator that is in float32 or whose matrix does not fit in memory.
            RuntimeError: The Lanczos method did not converge.
        """
        product = self._symmetric("eigsh")
        with limited(self._map.settings.memory):
            return extreme(product, k, which, tol, max_products)

    def _symmetric(self, name: str) -> SymmetricProduct:
        """Return the kernel of one set of samples.

        Args:
            name: The name of the method that needs it, for the error.

        Raises:
            ValueError: The operator has an `x2`.
        """
        if not self._map.is_symmetric:
            raise value_error(
                "x2",
                f"None for {name}(), which is of the kernel of one set of samples",
                f"an operator of shape {self.shape} between two",
                "Make NTKOperator(model, x1). Singular values of this one come from "
                "scipy.sparse.linalg.svds(operator.to_scipy()).",
            )

        def multiply(matrix: Tensor) -> Tensor:
            return (self @ matrix.to(device=self.device, dtype=self.dtype)).double().cpu()

        return SymmetricProduct(
            self.shape[0],
            self.dtype,
            self.device,
            multiply,
            self.to_dense,
            lambda: self._map.diagonal,
            self._map.is_dense_cheaper,
        )

    def diagonal(self) -> Tensor:
        """Return the exact diagonal `[D]`, from O backward passes over all samples.

        Raises:
            ValueError: There is an `x2`.
        """
        return self._symmetric("diagonal").diagonal().clone()

    def trace(
        self,
        method: Literal["hutchinson", "xtrace", "exact"] = "hutchinson",
        n_samples: int = 32,
        generator: torch.Generator | None = None,
    ) -> TraceEstimate:
        """Return the trace, by default an unbiased estimate and its standard error.

        `"hutchinson"` averages `zᵀΘz = ‖Jᵀz‖²` over vectors z of random signs, with a backward pass
        for each; its error decreases like `1/sqrt(n_samples)`. `"xtrace"` takes `n_samples`
        products, half of them with random vectors and half with a basis of the results. Its error
        decreases much faster if the spectrum decays, as that of kernels does. `"exact"` sums the
        diagonal, from O backward passes over all samples, and its error is 0.

        Args:
            method: The estimator.
            n_samples: The number of backward passes (at least 2) for `"hutchinson"`, or of
                products (at least 4) for `"xtrace"`; `"exact"` ignores it.
            generator: The generator of the random numbers; None draws the same numbers in every
                call. The global generators are never used.

        Raises:
            ValueError: There is an `x2`; `n_samples` is too small, or for `"xtrace"` not less
                than 2 D.

        References:
            Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
            smoothing splines" (1990). Epperly, Tropp, Webber, "XTrace: Making the most of every
            sample in stochastic trace estimation" (2024).
        """
        product = self._symmetric("trace")
        check_choice("method", method, ("hutchinson", "xtrace", "exact"))
        check_positive_int("n_samples", n_samples)
        if method == "exact":
            return TraceEstimate(product.trace, 0.0)
        size, half = self.shape[0], n_samples // 2
        if method == "xtrace":
            if not 2 <= half < size:
                expected = f"at least 4 and less than {2 * size} for 'xtrace'"
                remedy = "For a small operator take to_dense().trace()."
                raise value_error("n_samples", expected, n_samples, remedy)
            return xtrace(product.multiply, on_sphere(half, size, generator).T.cpu())
        if n_samples < 2:
            expected = "at least 2, for the error of the estimate"
            raise value_error("n_samples", expected, n_samples)
        # The full kernel has the same trace as "trace", so that signs for samples and outputs
        # estimate both, with one pass for each vector.
        z = signs(n_samples, self._map.left.size, generator)
        values = self._map.squared_norms(z.to(device=self.device, dtype=self.dtype))
        return mean_and_error(values / self._map.outputs if self._map.form == "mean" else values)

    def solve(
        self,
        y: Tensor,
        diag_reg: float = 0.0,
        tol: float | None = None,
        *,
        max_products: int = 1000,
    ) -> Solution:
        r"""Solve `(Θ + diag_reg · tr Θ/D) x = y`, with a verified residual.

        The method is conjugate gradients, preconditioned with a randomized Nyström approximation
        whose rank adapts to the spectrum; or Cholesky's decomposition of the dense matrix, if that
        takes fewer operations and fits in memory. Recurrences are in float64 for every precision
        of the operator. The residual is computed at the end, by a product with the returned x. For
        a singular kernel the result is the solution of least norm, if there is a solution.

        `diag_reg` has the meaning that it has in `torch_ntk.predict`. Its unit, the mean of the
        diagonal, is computed exactly, by O backward passes over all samples.

        Args:
            y: The right-hand sides: `[D]`, or `[D, M]` for M of them, which share products; for
                `output="full"` also a single one in the shape of the outputs, `[N, O]`.
            diag_reg: The number that is added to the diagonal, in units of its mean.
            tol: The tolerance of `‖Θx + μx - y‖ / ‖y‖` for every right-hand side; None is 1e-8 in
                float64 and 1e-3 in float32.
            max_products: The approximate largest number of products for each right-hand side.

        Returns:
            x in the shape of y, the residual, and the number of products.

        Raises:
            TypeError: `y` is not a tensor of floating-point numbers.
            ValueError: There is an `x2`; `y` has another shape or device; `diag_reg` or `tol` is
                negative.
            RuntimeError: The tolerance was not reached; the message states the smallest residual.

        References:
            Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
            Frangella, Tropp, Udell, "Randomized Nyström preconditioning" (2023).

        Example:
            >>> import torch
            >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
            >>> theta = NTKOperator(torch.nn.Linear(1, 1).double(), x)  # Θ = x xᵀ + 1
            >>> solution = theta.solve(torch.tensor([2.0, 3.0], dtype=torch.float64))
            >>> solution.x.round(decimals=6)
            tensor([1., 0.], dtype=torch.float64)
        """
        product = self._symmetric("solve")
        values = as_float64("y", y)
        size, shapes = self.shape[0], f"[{self.shape[0]}] or [{self.shape[0]}, M]"
        columns = values[:, None] if values.ndim == 1 else values
        if self.output == "full":
            samples = (size // self.outputs, self.outputs)
            shapes += f", or outputs {list(samples)}"
            columns = values.reshape(size, 1) if values.shape == samples else columns
        if columns.ndim != 2 or len(columns) != size or y.device != self.device:
            raise value_error("y", f"of shape {shapes} on {self.device}", y)
        with limited(self._map.settings.memory):
            found = solve(product, columns.cpu(), diag_reg, tol, max_products)
        x = found.x.to(device=self.device, dtype=self.dtype).reshape(y.shape)
        return found._replace(x=x)

    def logdet(
        self,
        diag_reg: float = 0.0,
        *,
        n_samples: int = 16,
        max_products: int = 200,
        generator: torch.Generator | None = None,
    ) -> TraceEstimate:
        r"""Return `log det (Θ + diag_reg · tr Θ/D)` = `tr log(…)`, and its standard error.

        If the dense matrix takes fewer operations, and for `diag_reg=0`, the result is computed
        from all eigenvalues, and the error is 0. Otherwise a Nyström approximation gives most of
        it exactly, and stochastic Lanczos quadrature with random signs estimates the rest. The
        stated error is the standard error of the mean over the signs plus the change by the last
        Lanczos steps.

        Args:
            diag_reg: The number that is added to the diagonal, in units of its mean, as in
                `torch_ntk.predict`.
            n_samples: The number of random vectors, at least 2.
            max_products: The largest number of products for each vector.
            generator: The generator of the random numbers; None draws the same numbers in every
                call.

        Raises:
            ValueError: There is an `x2`; an eigenvalue of Θ + μ is 0 up to rounding, so that the
                logarithm is -∞ to working precision; or `diag_reg` is 0 for a matrix that does
                not fit in memory.
            RuntimeError: The quadrature did not converge in `max_products`.

        References:
            Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"
            (2017). Wenger et al., "Preconditioning for scalable Gaussian process hyperparameter
            optimization" (2022).
        """
        product = self._symmetric("logdet")
        with limited(self._map.settings.memory):
            return log_determinant(product, diag_reg, n_samples, max_products, generator)

    def spectral_density(
        self,
        *,
        width: float | None = None,
        n_samples: int = 16,
        max_products: int = 400,
        generator: torch.Generator | None = None,
    ) -> SpectralDensity:
        r"""Return the smoothed density of the eigenvalues, with its standard error.

        `φ(t) = 1/D Σ_i g(t - λ_i)` with a Gaussian g of standard deviation `width` is estimated by
        stochastic Lanczos quadrature, or computed from all eigenvalues, with error 0, if the dense
        matrix takes fewer operations. It does not resolve eigenvalues that are closer together
        than `width`; the small eigenvalues of a kernel, on a logarithmic axis, are best computed
        from `to_dense()`.

        Args:
            width: The standard deviation of the Gaussian; None is a hundredth of the largest
                eigenvalue. Smaller widths need more products.
            n_samples: The number of random vectors, at least 2.
            max_products: The largest number of products for each vector.
            generator: The generator of the random numbers; None draws the same numbers in every
                call.

        Raises:
            ValueError: There is an `x2`, or `width` is not positive.
            RuntimeError: The quadrature did not converge in `max_products`.

        References:
            Lin, Saad, Yang, "Approximating spectral densities of large matrices" (2016). Ghorbani,
            Krishnan, Xiao, "An investigation into neural net optimization via Hessian eigenvalue
            density" (2019).
        """
        product = self._symmetric("spectral_density")
        with limited(self._map.settings.memory):
            return spectral_density(product, width, n_samples, max_products, generator)


def _with_fewer_outputs(
    fn: ModelFunction, outputs: int, output: OperatorOutput, probes: int, seed: int
) -> tuple[ModelFunction, int]:
    """Return the function that is differentiated for this `output`, and its number of outputs."""
    if output == "pseudo":
        return fn.pseudo(), 1
    if output == "probed" and probes < outputs:
        return probing(fn, outputs, probes, seed), probes
    return fn, outputs
