"""The posterior of a Gaussian process: an infinitely wide network, conditioned on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ..empirical import NTKOperator
from ._gaussian import Gaussian, promoted, read_square, symmetrized
from ._modes import Modes, read_regression
from ._operator_process import OperatorProcess, process_of_operator


@dataclass(frozen=True, eq=False, repr=False)
class GaussianProcess:
    """The posterior of a Gaussian process given its training data; made by `gp_inference`.

    Attributes:
        targets: A copy of y.
    """

    targets: Tensor
    _modes: Modes
    _weights: Tensor  # V (λ⁻¹ Vᵀ y), columns
    _inverse: Tensor  # λ⁻¹, 0 outside the numerical range

    def __repr__(self) -> str:
        layout, eigen = self._modes.layout, self._modes.eigen
        return (
            f"GaussianProcess({layout.samples} samples, {layout.outputs} outputs, "
            f"rank {eigen.rank} of {eigen.size})"
        )

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of the regularized train kernel, ascending, float64."""
        return self._modes.eigen.values.clone()

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the kernel's noise floor."""
        return self._modes.eigen.rank

    @torch.no_grad()
    def __call__(self, k_test_train: Tensor, k_test_test: Tensor | None = None) -> Gaussian:
        """Mean and covariance of the function on test samples.

        Args:
            k_test_train: The prior covariance between test and training samples, `[M, N]` or
                `[M, N, O, O]`. For the posterior on the training samples pass their own kernel.
            k_test_test: The prior covariance of the test samples, `[M, M]` or `[M, M, O, O]`;
                without it only the mean is computed.

        Returns:
            The posterior of the function, without the noise of observations, in the promoted dtype
            of all tensors that went in.

        Raises:
            TypeError: A kernel is not a dense tensor of real floating-point numbers.
            ValueError: A shape or device does not fit, something is not finite, or
                `k_test_test` not symmetric.
        """
        layout = self._modes.layout
        kernel = layout.read_kernel("k_test_train", k_test_train, None, layout.samples)
        dtype = promoted(self._modes.dtype, self.targets, k_test_train, k_test_test)
        mean = layout.returned(kernel @ self._weights, dtype)
        if k_test_test is None:
            return Gaussian(mean, None)
        prior = read_square(layout, "k_test_test", k_test_test, k_test_train.shape[0])
        projected = kernel @ self._modes.eigen.vectors
        covariance = prior - (projected * self._inverse) @ projected.mT
        covariance = layout.kernel_of(symmetrized(covariance))
        return Gaussian(mean, covariance.to(dtype).to(layout.device))


@overload
def gp_inference(k_train_train: Tensor, y: Tensor, *, diag_reg: float = 0.0) -> GaussianProcess: ...


@overload
def gp_inference(
    k_train_train: NTKOperator, y: Tensor, *, diag_reg: float = 0.0
) -> OperatorProcess: ...


@torch.no_grad()
def gp_inference(
    k_train_train: Tensor | NTKOperator, y: Tensor, *, diag_reg: float = 0.0
) -> GaussianProcess | OperatorProcess:
    """The posterior of a Gaussian process with covariance K, given y on the training samples.

        mean = K_st (K + ρ)⁻¹ y,   covariance = K_ss - K_st (K + ρ)⁻¹ K_ts,

    where ρ = diag_reg · mean(diag K) is the variance of the observations' noise. With the NNGP
    kernel this is Bayesian inference in an infinitely wide network; training only the last layer
    samples from that posterior (Lee et al. 2018, "Deep Neural Networks as Gaussian Processes"). The
    mean with the NTK is kernel regression.

    Args:
        k_train_train: K, `[N, N]` (the same for every output, with independent outputs) or
            `[N, N, O, O]`; or `NTKOperator(model, x, output=…)`, whose matrix is never formed: the
            linear system is solved by products, to the tolerance of `NTKOperator.solve`.
        y: Targets, `[N]` or `[N, O]`, floating point; for labels use `one_hot`.
        diag_reg: The variance of the noise, in units of the mean of K's diagonal.

    Returns:
        `p(k_test_train, k_test_test=None) -> Gaussian(mean, covariance)`; if `k_train_train` is an
        operator, these two may be operators too.

    Raises:
        RuntimeError: A linear system with an operator was not solved, because it is singular or
            takes too many products; the message says which residual was reached.
        TypeError: A tensor is not of real floating-point numbers, or `diag_reg` not a number.
        ValueError: Shapes do not fit; something is not finite; the kernel is not symmetric or not
            positive semi-definite beyond its precision; or `diag_reg` is negative.

    Warns:
        SingularKernelWarning: The kernel is singular, and its pseudo-inverse is used; the warning
            states the numerical rank.

    Example:
        >>> import torch
        >>> from torch_ntk.predict import gp_inference
        >>> k = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> posterior = gp_inference(k, torch.tensor([1.0, -1.0], dtype=torch.float64))
        >>> mean, covariance = posterior(k[:1], k[:1, :1])  # at the first training sample
        >>> round(mean.item(), 12), round(abs(covariance.item()), 12)
        (1.0, 0.0)
    """
    if isinstance(k_train_train, NTKOperator):
        return process_of_operator(k_train_train, y, diag_reg)
    modes, columns = read_regression("k_train_train", k_train_train, y, diag_reg)
    inverse = modes.inverse()
    rotated = modes.rotate(columns)
    return GaussianProcess(
        targets=y.detach().clone(),
        _modes=modes,
        _weights=modes.eigen.vectors @ (inverse[:, None] * rotated),
        _inverse=inverse,
    )
