"""Mean and covariance of infinitely many, infinitely wide networks trained on squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .._checks import check_choice, describe, type_error
from ._gaussian import (
    Gaussian,
    HasKernels,
    check_pair,
    promoted,
    read_square,
    symmetrized,
)
from ._gradient_flow_mse import FlowDynamics
from ._modes import Modes, read_regression
from ._predictor import spread
from ._reduction import Reduction, rate_of
from ._times import Time, read_times

Ensemble: TypeAlias = Literal["ntk", "nngp"]
"""`"ntk"`: all layers are trained; `"nngp"`: only the last one is."""


@dataclass(frozen=True, eq=False, repr=False)
class EnsemblePredictor:
    """Mean and covariance of outputs over initializations; made by `ensemble_mse`.

    Attributes:
        ensemble: `"ntk"` or `"nngp"`.
        targets: A copy of y.
        reduction_rate: The factor c in ∂loss/∂f = c (f - y).
    """

    ensemble: Ensemble
    targets: Tensor
    reduction_rate: float
    _modes: Modes
    _y: Tensor  # columns
    _dtype: torch.dtype  # the promoted dtype of the arguments of ensemble_mse
    _prior: Tensor | None  # Vᵀ K V for the covariance at initialization; None: K is Θ itself

    def __repr__(self) -> str:
        layout, eigen = self._modes.layout, self._modes.eigen
        return (
            f"EnsemblePredictor({self.ensemble!r}, {layout.samples} samples, "
            f"{layout.outputs} outputs, rank {eigen.rank} of {eigen.size})"
        )

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of the kernel of the training, regularized, ascending, float64."""
        return self._modes.eigen.values.clone()

    @property
    def mode_times(self) -> Tensor:
        """1/(c λ), the time in which a mode's residual falls by a factor e."""
        return 1.0 / (self.reduction_rate * self._modes.eigen.clipped)

    @torch.no_grad()
    def __call__(
        self,
        t: Time,
        k_test_train: HasKernels,
        k_test_test: Tensor | HasKernels | None = None,
    ) -> Gaussian:
        """The distribution of outputs at time t on test samples.

        Args:
            t: A number, a 0-dim or 1-D tensor of times, or `None` or infinity for the limit.
            k_test_train: The kernels between test and training samples, with `nngp` and `ntk`,
                each `[M, N]` or `[M, N, O, O]`. For the training samples pass their own kernels.
            k_test_test: The NNGP kernel of the test samples, or a pair with it, `[M, M]` or
                `[M, M, O, O]`; without it only the mean is computed.

        Returns:
            Mean and covariance, with a leading axis of times if t is 1-D, in the promoted
            dtype of all tensors that went in.

        Raises:
            TypeError: An argument is of the wrong type or dtype.
            ValueError: Shapes or devices do not fit, something is not finite, a time is
                negative, or `k_test_test` is not symmetric.

        Warns:
            SingularKernelWarning: The kernel is singular and t so large that the result depends on
                its numerical rank.
        """
        layout = self._modes.layout
        times, single = read_times(t, layout.work_device)
        pair = check_pair("k_test_train", k_test_train)
        moving = getattr(pair, self.ensemble)
        name = f"k_test_train.{self.ensemble}"
        kernel = layout.read_kernel(name, moving, None, layout.samples)
        decay, gain = self._modes.evolve(FlowDynamics(self.reduction_rate), times)
        eps = max(self._modes.eps, torch.finfo(moving.dtype).eps)
        projected = self._modes.project(kernel, eps)
        columns = spread(projected, gain, self._modes.rotate(self._y))
        square = _nngp_of(k_test_test)
        start = pair.nngp if self._prior is not None and square is not None else None
        dtype = promoted(self._dtype, moving, square, start)
        mean = layout.returned(columns, dtype, single=single)
        if square is None:
            return Gaussian(mean, None)
        prior = read_square(layout, "k_test_test", square, moving.shape[0])
        initial = None
        if start is not None:
            samples = moving.shape[0]
            initial = layout.read_kernel("k_test_train.nngp", start, samples, layout.samples)
        at_times = zip(decay, gain, strict=True)
        covariance = torch.stack(
            [self._covariance(prior, projected, initial, d, g) for d, g in at_times]
        )
        covariance = layout.kernel_of(symmetrized(covariance))
        covariance = covariance[0] if single else covariance
        return Gaussian(mean, covariance.to(dtype).to(layout.device))

    def _covariance(
        self, prior: Tensor, projected: Tensor, initial: Tensor | None, decay: Tensor, gain: Tensor
    ) -> Tensor:
        """The covariance of test outputs at one time, from K_ss, Θ_st V and K_st."""
        if self._prior is None or initial is None:
            factor = gain * (1.0 + decay)  # (1 - exp(-2cλt))/λ
            return prior - (projected * factor) @ projected.mT
        weights = projected * gain  # A_t V
        cross = weights @ (self._modes.eigen.vectors.mT @ initial.mT)
        return prior + weights @ self._prior @ weights.mT - cross - cross.mT


@torch.no_grad()
def ensemble_mse(
    k_train_train: HasKernels,
    y: Tensor,
    *,
    ensemble: Ensemble = "ntk",
    reduction: Reduction = "sum",
    diag_reg: float = 0.0,
) -> EnsemblePredictor:
    """The distribution of the outputs of infinitely wide networks trained on squared error.

    At initialization the outputs are a Gaussian process with mean 0 and the NNGP kernel K as its
    covariance; gradient flow moves them linearly. With A_t = Θ_st Θ⁻¹ (1 - exp(-c Θ t)) and Θ the
    NTK (`ensemble="ntk"`, all layers trained):

        mean = A_t y,
        covariance = K_ss + A_t K A_tᵀ - (A_t K_ts + K_st A_tᵀ).

    Training only the last layer replaces Θ by K (`ensemble="nngp"`):

        covariance = K_ss - K_st K⁻¹ (1 - exp(-2 c K t)) K_ts,

    whose limit is the Bayesian posterior of the network, `gp_inference`. (Lee et al. 2019, "Wide
    Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent".)

    Args:
        k_train_train: The kernels of the training samples: a `KernelPair`, or anything with
            `nngp` and `ntk`, each `[N, N]` or `[N, N, O, O]`.
        y: Targets, `[N]` or `[N, O]`, floating point; for labels use `one_hot`.
        ensemble: `"ntk"` or `"nngp"`.
        reduction: `"sum"` (c = 1, the loss ½ Σ‖f - y‖²) or `"mean"` (c = 1/(N·O)).
        diag_reg: Regularization of the diagonal of the kernel of the training (Θ, or K for
            `"nngp"`), in units of that diagonal's mean. K in A_t K A_tᵀ is not regularized.

    Returns:
        `p(t, k_test_train, k_test_test=None) -> Gaussian(mean, covariance)`.

    Raises:
        TypeError: `k_train_train` lacks one of the kernels, a tensor is not of real floating-point
            numbers, or `diag_reg` not a number.
        ValueError: Shapes do not fit; something is not finite; a kernel is not symmetric or not
            positive semi-definite beyond its precision; or an option is invalid.

    Example:
        >>> import torch
        >>> from torch_ntk.predict import KernelPair, ensemble_mse
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> train = KernelPair(nngp=0.5 * eye, ntk=eye)
        >>> p = ensemble_mse(train, torch.tensor([1.0, -1.0], dtype=torch.float64))
        >>> mean, covariance = p(1.0, train, train)  # the training samples as test samples
        >>> mean  # (1 - exp(-1)) y
        tensor([ 0.6321, -0.6321], dtype=torch.float64)
        >>> covariance[0]  # exp(-2)/2 on the diagonal
        tensor([0.0677, 0.0000], dtype=torch.float64)
    """
    pair = check_pair("k_train_train", k_train_train)
    check_choice("ensemble", ensemble, ("ntk", "nngp"), "'ntk' trains all layers, 'nngp' the last.")
    name = f"k_train_train.{ensemble}"
    kernel = getattr(pair, ensemble)
    modes, columns = read_regression(name, kernel, y, diag_reg)
    layout = modes.layout
    prior, dtype = None, promoted(modes.dtype, y)
    if ensemble == "ntk":
        covariance = read_square(layout, "k_train_train.nngp", pair.nngp, layout.samples)
        prior = modes.rotate(covariance @ modes.eigen.vectors)
        dtype = promoted(dtype, pair.nngp)
    return EnsemblePredictor(
        ensemble=ensemble,
        targets=y.detach().clone(),
        reduction_rate=rate_of(reduction, layout.entries),
        _modes=modes,
        _y=columns.clone(),
        _dtype=dtype,
        _prior=prior,
    )


def _nngp_of(k_test_test: object) -> Tensor | None:
    if k_test_test is None or isinstance(k_test_test, Tensor):
        return k_test_test
    if hasattr(k_test_test, "nngp") and isinstance(k_test_test.nngp, Tensor):
        return k_test_test.nngp
    raise type_error(
        "k_test_test",
        "the NNGP kernel of the test samples, or a pair of kernels that has it as `nngp`",
        describe(k_test_test),
    )
