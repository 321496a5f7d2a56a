"""The posterior of a Gaussian process whose kernel is an operator: its matrix is never formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import value_error
from ..empirical import NTKOperator
from ..memory import budget, size_in_words
from ._gaussian import Gaussian, promoted, read_square, symmetrized
from ._layout import Layout, layout_for
from ._modes import check_device, check_diag_reg, read_targets


@dataclass(frozen=True, eq=False, repr=False)
class OperatorProcess:
    """The posterior of a Gaussian process given its training data; made by `gp_inference`.

    Attributes:
        targets: A copy of y.
        residual: The relative residual of the linear system, verified by `NTKOperator.solve`.
    """

    targets: Tensor
    residual: float
    _kernel: NTKOperator
    _layout: Layout
    _diag_reg: float
    _weights: Tensor  # (K + ρ)⁻¹ y, columns

    def __repr__(self) -> str:
        layout = self._layout
        return f"OperatorProcess({layout.samples} samples, {layout.outputs} outputs)"

    @torch.no_grad()
    def __call__(
        self,
        k_test_train: Tensor | NTKOperator,
        k_test_test: Tensor | NTKOperator | None = None,
    ) -> Gaussian:
        """Mean and covariance of the function on test samples.

        Args:
            k_test_train: The prior covariance between M test samples and the training samples,
                `[M, N]` or `[M, N, O, O]`; or `NTKOperator(model, x_test, x_train, output=…)`, of
                which the mean takes one product.
            k_test_test: The prior covariance of the test samples, as a tensor or an operator;
                without it only the mean is computed. The covariance takes a linear system for each
                test sample (and output), so that M should be small.

        Returns:
            The posterior of the function, without the noise of observations, in the promoted dtype
            of all tensors that went in.

        Raises:
            TypeError: A kernel is not a dense tensor of real floating-point numbers, or operator.
            ValueError: A shape or device does not fit, something is not finite, `k_test_test` is
                not symmetric, or the covariance of so many test samples does not fit in memory.
            RuntimeError: A linear system was not solved to the precision of the operator.
        """
        layout, dtype = self._layout, promoted(self._kernel.dtype, self.targets)
        rows = self._rows(k_test_train)
        if isinstance(k_test_train, NTKOperator):
            mean = (k_test_train @ self._weights.to(k_test_train.dtype)).double()
        else:
            kernel = layout.read_kernel("k_test_train", k_test_train, None, layout.samples)
            mean = kernel @ self._weights.to(kernel)
        dtype = promoted(torch.promote_types(dtype, k_test_train.dtype))
        shaped = layout.returned(mean, dtype)
        if k_test_test is None:
            return Gaussian(shaped, None)
        self._check_fits(rows)
        if isinstance(k_test_train, NTKOperator):
            kernel = k_test_train.to_dense().double()
        if isinstance(k_test_test, NTKOperator):
            self._check_kind("k_test_test", k_test_test, rows)
            prior = k_test_test.to_dense().double()
        else:
            prior = read_square(layout, "k_test_test", k_test_test, len(mean) // self._each)
        columns = self._kernel.solve(kernel.mT.to(layout.device), self._diag_reg).x.double()
        covariance = layout.kernel_of(symmetrized(prior - kernel @ columns.to(kernel)))
        dtype = torch.promote_types(dtype, k_test_test.dtype)
        return Gaussian(shaped, covariance.to(dtype).to(layout.device))

    @property
    def _each(self) -> int:
        """The number of rows of a kernel's matrix that belong to one sample."""
        return self._layout.outputs if self._layout.full else 1

    def _rows(self, kernel: Tensor | NTKOperator) -> int:
        """The number of rows of a test kernel's matrix: M·O or M."""
        if isinstance(kernel, NTKOperator):
            self._check_kind("k_test_train", kernel, self._layout.samples * self._each)
            return kernel.shape[0]
        return len(kernel) * self._each if isinstance(kernel, Tensor) and kernel.ndim else 0

    def _check_kind(self, name: str, kernel: NTKOperator, columns: int) -> None:
        """Raise `ValueError` unless an operator has the right `output`, columns and device."""
        same = kernel.output == self._kernel.output
        if not same or kernel.shape[1] != columns or kernel.device != self._layout.device:
            which = "x_test, x_train" if name == "k_test_train" else "x_test"
            raise value_error(
                name,
                f"an operator of {columns} columns on {self._layout.device} with "
                f"output={self._kernel.output!r}, as the train kernel has",
                f"one of shape {kernel.shape} with output={kernel.output!r} on {kernel.device}",
                f"Make NTKOperator(model, {which}, output={self._kernel.output!r}).",
            )

    def _check_fits(self, rows: int) -> None:
        """Raise `ValueError` if a covariance with so many rows does not fit in memory."""
        need = 8 * rows * (4 * self._kernel.shape[0] + 3 * rows)
        free = budget(self._layout.work_device)
        if need > free:
            raise value_error(
                "k_test_test",
                f"of fewer test samples, whose covariance takes less than {size_in_words(free)}",
                f"{rows // self._each}, which take {size_in_words(need)}",
                "Call it for some of them at a time, or without k_test_test for the mean alone.",
            )


@torch.no_grad()
def process_of_operator(kernel: NTKOperator, y: Tensor, diag_reg: object) -> OperatorProcess:
    """`gp_inference` for an operator, with its errors."""
    regularization = check_diag_reg(diag_reg)
    targets = read_targets(y)
    rows, columns = kernel.shape
    if rows != columns:
        raise value_error(
            "k_train_train",
            "the operator of one set of samples",
            f"one of shape {kernel.shape}",
            "Make NTKOperator(model, x_train, output=…).",
        )
    o = kernel.outputs if kernel.output == "full" else None
    shape = (rows, rows) if o is None else (rows // o, rows // o, o, o)
    # A tensor of the kernel's shape that takes no memory, because its entries are one and the same.
    like = torch.zeros((), device=kernel.device).expand(shape)
    layout = layout_for("k_train_train", like, tuple(y.shape), "y")
    check_device(y, "k_train_train", kernel.device)
    solution = kernel.solve(layout.columns(targets), regularization)
    return OperatorProcess(
        targets=y.detach().clone(),
        residual=solution.residual,
        _kernel=kernel,
        _layout=layout,
        _diag_reg=regularization,
        _weights=solution.x,
    )
