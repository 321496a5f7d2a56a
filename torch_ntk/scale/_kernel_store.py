"""`KernelStore`: a kernel in a folder, with linear solves, eigenpairs and predictions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .._checks import check_choice, check_finite_number, check_positive_int, describe, value_error
from ..empirical.operator import Eigenpairs, Solution
from ..empirical.operator._lanczos import extreme
from ..empirical.operator._solve import Inner, solve
from ..linalg import as_float64
from ..memory import ranges
from ._factor import dask_factor, fits_in_memory, lapack_factor, worker_here
from ._folder import Folder, about
from ._predict import Prediction, TestKernel, at_time, in_the_limit
from ._product import product_of
from ._sources import source_of
from ._tile_store import TileStore

Method = Literal["auto", "lapack", "dask", "iterative"]

_PAIRS = 200  # the default number of leading eigenpairs for a prediction at a time t


class KernelStore(TileStore):
    """A kernel in a folder that `compute_kernel` has made or is still filling.

    Args:
        path: The folder.
        kernel: The function that computes the kernel. Estimators need it to predict samples that
            are in no store. A store does not contain it; `compute_kernel` sets it.

    Raises:
        ImportError: The extra `scale` is not installed.
        ValueError: There is no such folder, it holds something else, or its content does not fit
            its manifest.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, kernel: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(path)
        if self._folder.manifest.kind != "kernel":
            raise value_error("path", "a store of a kernel", f"one of {self._folder.manifest.kind}")
        self.kernel = kernel

    @property
    def symmetric(self) -> bool:
        """Whether it is the kernel of one set of samples with itself."""
        return self._folder.grid.symmetric

    def leading(self, n: int) -> KernelStore:
        """The kernel of the first n samples, read from the same tiles.

        The other samples can then serve as test samples:
        `store.leading(n).predict(y, store.array[n:, :n])`.

        Args:
            n: The number of samples.

        Raises:
            ValueError: There are fewer samples, or the kernel is between two sets of samples.
        """
        self._check_one_set("leading")
        if check_positive_int("n", n) > self.shape[0]:
            raise value_error("n", f"at most {self.shape[0]}, the number of samples", n)
        found = KernelStore(self.path, kernel=self.kernel)
        found._folder = Folder(self.path, n)
        return found

    def __deepcopy__(self, memo: object) -> KernelStore:
        return self  # a store is immutable

    def __reduce__(self) -> Any:
        return _opened, (self.path, self.first, self.kernel)

    def is_of(self, x: Any) -> bool:
        """Whether samples are those of the kernel's rows, by their shape, dtype and hash.

        Args:
            x: Samples in any form that `compute_kernel` takes.
        """
        if self.first is not None:
            return False
        return about(source_of("x", x), self.tile) == self._folder.manifest.x1

    def check_test(self, other: KernelStore) -> None:
        """Raise `ValueError` unless `other` is the kernel between test samples and this one's.

        Args:
            other: A store, which must be of the same kernel, have this store's samples as its x2,
                and be complete.
        """
        self._test_kernel(other, "other")

    def apply(self, x: Any, v: Tensor) -> Tensor:
        """The product K(x, X) v for new samples x and this store's samples X.

        Args:
            x: A store of K(x, X); or samples, for which the kernel is evaluated in this process.
            v: A matrix `[N, C]`.

        Raises:
            TypeError, ValueError: The store is of other samples or another kernel; or samples are
                given, but this store was opened without its kernel.
        """
        if isinstance(x, KernelStore):
            self._test_kernel(x, "X")
            return x @ v
        if self.kernel is None:
            raise value_error(
                "X",
                "a store of the kernel between test and training samples",
                describe(x),
                "A store does not hold its kernel. Compute K(X, X_train) with compute_kernel, or "
                "open the training store as KernelStore(path, kernel=kernel).",
            )
        source, folder = source_of("X", x), self._folder
        out = torch.zeros(source.shape[0], v.shape[1], dtype=torch.float64)
        for a, b in ranges(0, source.shape[0], self.tile):
            rows = torch.tensor(source.rows(a, b))
            for j in range(folder.grid.columns):
                others = torch.from_numpy(folder.samples(1, j))
                found = torch.as_tensor(self.kernel(rows, others)).detach().cpu().double()
                out[a:b] += found @ v[folder.grid.bounds(0, j)[1]]
        return out

    def solve(
        self,
        y: Any,
        diag_reg: float = 0.0,
        *,
        method: Method = "auto",
        client: Any = None,
        tol: float | None = None,
        max_products: int = 1000,
    ) -> Solution:
        """Solve `(K + diag_reg · tr K/N) x = y`, with a verified residual.

        Whatever the method, the residual is computed by a product with the stored kernel, and x is
        refined until the residual is at most `tol`.

        Args:
            y: Right-hand sides, `[N]` or `[N, M]`.
            diag_reg: Regularization of the diagonal, in units of its mean.
            method: The method:

                - `"lapack"`: a Cholesky factor in memory;
                - `"dask"`: Dask's blocked Cholesky factorization on the workers of the client, or
                  on one worker in this process without a client; what does not fit in their memory
                  is moved to disk;
                - `"iterative"`: conjugate gradients with a Nyström preconditioner, which reads the
                  tiles once for each product and needs no memory for a factor;
                - `"auto"`: `"lapack"` if the kernel fits in memory; else `"dask"` with a client
                  and `"iterative"` without. A numerically singular kernel, which has no Cholesky
                  factor, is always solved by the iterative method.
            client: A `dask.distributed.Client`, which also computes the products.
            tol: The tolerance of `‖Kx + ρx - y‖ / ‖y‖` for every right-hand side; None means 1e-8.
            max_products: About the largest number of products for each right-hand side.

        Returns:
            x in the shape of y, float64; the residual that was reached; and the number of products
            of the iterative method, 0 if a factor was used.

        Raises:
            TypeError: `y` is not of floating-point numbers.
            ValueError: The kernel is between two sets of samples, or not complete; `y` has another
                shape; an argument is out of its range.
            RuntimeError: The tolerance was not reached; the message says which residual was.

        References:
            Frangella, Tropp, Udell, "Randomized Nyström preconditioning" (2023).
        """
        check_choice("method", method, get_args(Method))
        self._check_one_set("solve")
        self._check_complete()
        values, columns = self._targets(y)
        if method == "auto":
            beyond: Method = "iterative" if client is None else "dask"
            method = "lapack" if fits_in_memory(self) else beyond
        with contextlib.ExitStack() as stack:

            def factor(shift: float) -> Inner | None:
                if method == "lapack":
                    return lapack_factor(self, shift)
                if method == "iterative":
                    return None
                workers = client
                if workers is None:
                    workers = stack.enter_context(worker_here(self.path.parent))
                return dask_factor(self, shift, workers)

            product = product_of(self, client)
            found = solve(product, columns, diag_reg, tol, max_products, factor)
        return found._replace(x=found.x.reshape(values.shape))

    def eigsh(
        self,
        k: int = 1,
        which: Literal["LA", "SA"] = "LA",
        *,
        client: Any = None,
        tol: float | None = None,
        max_products: int = 1000,
    ) -> Eigenpairs:
        """The `k` largest (`"LA"`) or smallest (`"SA"`) eigenvalues, with verified residuals.

        As in `torch_ntk.NTKOperator.eigsh`, the largest are found by ARPACK's Lanczos method, which
        reads the tiles once for each product if the kernel does not fit in memory; the smallest are
        found from the matrix, which must fit in memory.

        Args:
            k: The number of eigenpairs.
            which: Which end of the spectrum.
            client: A `dask.distributed.Client` for the products.
            tol: The relative tolerance of the Lanczos method; None means 1e-12.
            max_products: About the largest number of products of the Lanczos method.

        Raises:
            ValueError: The kernel is between two sets of samples, or not complete; `k` exceeds N;
                or `which="SA"` for a kernel that does not fit in memory.
            RuntimeError: The Lanczos method did not converge.
        """
        self._check_one_set("eigsh")
        self._check_complete()
        return extreme(product_of(self, client), k, which, tol, max_products)

    def predict(
        self,
        y: Any,
        k_test_train: KernelStore | Tensor | Any,
        t: float | None = None,
        *,
        diag_reg: float = 0.0,
        k: int | None = None,
        max_products: int = 200,
        client: Any = None,
    ) -> Prediction:
        r"""The outputs on M test samples after training on the squared error from f = 0.

        With K' = K + diag_reg·(tr K/N)·1, training by gradient flow on ½ Σ‖f - y‖² gives

            f_t(x) = k_xᵀ g(K') y,    g(λ) = (1 - exp(-λ t)) / λ,    g(λ) = 1/λ in the limit.

        The limit is the linear system of `solve`. At a time t, g(K') is exact on the k leading
        eigenvectors V. On their complement, where the eigenvalues of K' lie between
        ρ = diag_reg·tr K/N and λ_k + ρ, it is replaced by a polynomial p(K'), which takes as many
        products as its degree. The error of this is at most

            |f_t(x) - f̂_t(x)| ≤ max |g - p| · ‖(1 - VVᵀ) k_x‖ · ‖(1 - VVᵀ) y‖,

        which is returned as `remainder`, for each sample and output. A degree of the order of
        √(t λ_k) makes it negligible.

        Args:
            y: Targets, `[N]` or `[N, O]`.
            k_test_train: The kernel between test and training samples, `[M, N]`: another store, of
                the same kernel and with this store's samples as its x2; or a tensor, an array or a
                Dask array.
            t: The training time; None means the limit.
            diag_reg: Regularization of the diagonal, in units of its mean.
            k: The number of leading eigenpairs; None means 200, or all of a small kernel.
            max_products: The largest degree of p, which is the number of products for each target;
                with 0, p is a constant.
            client: A `dask.distributed.Client` for linear systems and products.

        Raises:
            TypeError, ValueError: As `solve`; the test kernel is of other samples or of another
                kernel, or its shape does not fit; `t` is negative.
            RuntimeError: The linear system or the eigenpairs did not reach their tolerance.

        References:
            Lee et al., "Wide neural networks of any depth evolve as linear models under gradient
            descent" (2019).
        """
        test = self._test_kernel(k_test_train)
        if t is None or t == np.inf:
            return in_the_limit(test, self.solve(y, diag_reg, client=client))
        time = check_finite_number("t", t, minimum=0.0, remedy="Pass None for the limit.")
        self._check_one_set("predict")
        values, columns = self._targets(y)
        size = self.shape[0]
        count = min(size, _PAIRS) if k is None else check_positive_int("k", k)
        count = size if k is None and size <= 5 * _PAIRS else count
        product = product_of(self, client)
        pairs = self.eigsh(count, client=client)
        found = at_time(
            test, pairs, columns, time, product.multiply, product.shift(diag_reg), max_products
        )
        shape = (len(found.mean), *values.shape[1:])
        return Prediction(found.mean.reshape(shape), found.remainder.reshape(shape), found.residual)

    def _targets(self, y: Any) -> tuple[Tensor, Tensor]:
        """Right-hand sides in float64: in the caller's shape, and as columns `[N, M]`."""
        values = as_float64("y", _tensor(y), "For labels use torch_ntk.predict.one_hot.").cpu()
        columns = values[:, None] if values.ndim == 1 else values
        size = self.shape[0]
        if columns.ndim != 2 or len(columns) != size:
            raise value_error("y", f"of shape [{size}] or [{size}, M]", describe(y))
        return values, columns

    def _test_kernel(self, given: object, name: str = "k_test_train") -> TestKernel:
        """The argument `name`, read as the kernel between test and training samples."""
        if not isinstance(given, KernelStore):
            return TestKernel.of_array(name, given, self.shape[0])
        mine, other = self._folder.manifest, given._folder.manifest
        if mine.kernel != other.kernel or other.x2 != mine.x1 or self.first:
            what = "another kernel" if mine.kernel != other.kernel else "other training samples"
            raise value_error(
                name,
                "of the same kernel, with the samples of this store as x2",
                f"the store {str(given.path)!r} of {what}",
                "Compute it with compute_kernel(kernel, x_test, x_train, store=…).",
            )
        given._check_complete()
        return TestKernel(given.shape[0], given.tiles())

    def _check_one_set(self, name: str) -> None:
        """Raise `ValueError` unless the kernel is that of one set of samples."""
        if not self.symmetric:
            raise value_error(
                "x2",
                f"None for {name}(), which is of the kernel of one set of samples",
                f"a store of shape {self.shape} between two",
                "Compute the kernel of the training samples: compute_kernel(kernel, x, store=…).",
            )


def _opened(path: Path, first: int | None, kernel: Callable[..., Any] | None) -> KernelStore:
    store = KernelStore(path, kernel=kernel)
    return store if first is None else store.leading(first)


def _tensor(values: Any) -> Any:
    """A NumPy array as a tensor, copied because the array may be read-only; else the value."""
    return torch.tensor(values) if isinstance(values, np.ndarray) else values
