"""Predictions in closed form from the eigenmodes of the train kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_tensor, describe, value_error
from ._gaussian import promoted
from ._modes import Dynamics, Modes, read_regression
from ._reduction import Reduction, rate_of
from ._times import Time, read_times


@dataclass(frozen=True, eq=False, repr=False)
class MSEPredictor:
    """Outputs of a linear model, or of an infinitely wide network, trained on squared error.

    Made by `gradient_flow_mse` and `gradient_descent_mse`, with the eigendecomposition of the
    train kernel, which serves all times. Call it for outputs; see `__call__`.

    Attributes:
        targets: A copy of y.
        reduction_rate: c in ∂loss/∂f = c (f - y): 1 for the reduction "sum", 1/(N·O) for "mean".
        learning_rate: The step size η; `None` for gradient flow.
        momentum: The momentum μ; 0 for gradient flow.
        max_learning_rate: The largest stable step, 2 (1 + momentum) / (c λ_max).
    """

    targets: Tensor
    reduction_rate: float
    learning_rate: float | None
    momentum: float
    max_learning_rate: float
    _modes: Modes
    _dynamics: Dynamics
    _y: Tensor  # columns, float64

    @staticmethod
    def of(
        kernel: object,
        y: Tensor,
        reduction: Reduction,
        diag_reg: object,
        dynamics: Callable[[float], Dynamics],
        learning_rate: float | None = None,
        momentum: float = 0.0,
    ) -> MSEPredictor:
        """The predictor for the arguments of `gradient_flow_mse` or `gradient_descent_mse`.

        `dynamics` is a function of the factor c in ∂loss/∂f = c (f - y).
        """
        modes, columns = read_regression("k_train_train", kernel, y, diag_reg)
        rate = rate_of(reduction, modes.layout.entries)
        return MSEPredictor(
            targets=y.detach().clone(),
            reduction_rate=rate,
            learning_rate=learning_rate,
            momentum=momentum,
            max_learning_rate=modes.stable_step(rate, momentum),
            _modes=modes,
            _dynamics=dynamics(rate),
            _y=columns.clone(),
        )

    def __repr__(self) -> str:
        layout = self._modes.layout
        kind = "gradient flow" if self.learning_rate is None else "gradient descent"
        steps = "" if self.learning_rate is None else f", lr={self.learning_rate:g}"
        if self.momentum:
            steps += f", momentum={self.momentum:g}"
        return (
            f"{type(self).__name__}({kind}, {layout.samples} samples, {layout.outputs} outputs, "
            f"{'full kernel' if layout.full else 'kernel shared by the outputs'}, "
            f"rank {self.rank} of {self._modes.eigen.size}{steps})"
        )

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of the regularized train kernel, ascending, `[N]` or `[N·O]`, float64."""
        return self._modes.eigen.values.clone()

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the kernel's noise floor."""
        return self._modes.eigen.rank

    @property
    def mode_times(self) -> Tensor:
        """The time in which each mode's residual falls by a factor e, in the order of eigenvalues.

        It is 1/(c λ) for gradient flow, and (1 - momentum)/(η c λ) steps for gradient descent,
        where this holds for slow modes (η c λ ≪ 1). It is infinite where λ ≤ 0.
        """
        one = torch.ones(1, dtype=torch.float64, device=self._modes.layout.work_device)
        return 1.0 / (self._dynamics.reach(one) * self._modes.eigen.clipped)

    def residual_decay(self, t: Time = None) -> Tensor:
        """The factor by which each mode's residual f - y is multiplied up to time t.

        Args:
            t: A time or times, as in `__call__`.

        Returns:
            `[D]`, or `[T, D]` for a tensor of T times, float64, in the order of `eigenvalues`.

        Raises:
            TypeError, ValueError: As a call.
        """
        times, single = self._read_times(t)
        with torch.no_grad():
            decay, _ = self._modes.evolve(self._dynamics, times)
        return decay[0] if single else decay

    @torch.no_grad()
    def __call__(
        self,
        t: Time = None,
        f0_train: Tensor | None = None,
        f0_test: Tensor | None = None,
        k_test_train: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs at time t from outputs f0 at t = 0.

        Args:
            t: A time (a number of steps for gradient descent): a number, a 0-dim or 1-D tensor of
                times, or `None` or infinity for the limit.
            f0_train: Outputs on the training samples at t = 0, of the shape of y; zeros by
                default.
            f0_test: Outputs on test samples at t = 0, `[M]` or `[M, O]`; zeros by default.
            k_test_train: The kernel between test and training samples, `[M, N]` or
                `[M, N, O, O]`, not regularized.

        Returns:
            `(f_train, f_test)` in the shapes of f0, with a leading axis of times if t is 1-D;
            `f_test` is `None` without `k_test_train`. They are computed in float64 and returned in
            the promoted dtype of the tensors that went in, except for t.

        Raises:
            TypeError: An argument is of the wrong type or dtype.
            ValueError: Shapes or devices do not fit, something is not finite, a time is negative,
                or the outputs diverge beyond the range of float64.

        Warns:
            SingularKernelWarning: The kernel is singular and t so large that the result depends on
                its numerical rank; outputs keep f0 in directions outside of the kernel's range.
        """
        times, single = self._read_times(t)
        layout = self._modes.layout
        start = torch.zeros_like(self._y)
        if f0_train is not None:
            start = layout.read_outputs("f0_train", f0_train)
        test = read_test(self._modes, f0_test, k_test_train)
        _, gain = self._modes.evolve(self._dynamics, times)
        if not bool(torch.isfinite(gain).all()):
            raise self._diverged()
        dtype = promoted(self._modes.dtype, self.targets, f0_train, f0_test, k_test_train)
        residual = self._modes.rotate(start - self._y)
        # 1 - decay, computed from the gain, because the difference would cancel for slow modes.
        change = gain * self._modes.eigen.clipped
        f_train = start - spread(self._modes.eigen.vectors, change, residual)
        f_test = None
        if test is not None:
            f_test = test[0] - spread(test[1], gain, residual)
        if not (_finite(f_train) and (f_test is None or _finite(f_test))):
            raise self._diverged()
        outputs = layout.returned(f_train, dtype, single=single)
        return outputs, None if f_test is None else layout.returned(f_test, dtype, single=single)

    def _read_times(self, t: object) -> tuple[Tensor, bool]:
        device = self._modes.layout.work_device
        times, single = read_times(t, device, steps=self.learning_rate is not None)
        lr, largest = self.learning_rate, self.max_learning_rate
        if lr is not None and lr >= largest and bool(torch.isinf(times).any()):
            raise value_error(
                "lr",
                f"below {largest:.9g} for the limit to exist",
                f"{lr:g}",
                "At this step size gradient descent does not converge. Ask for a finite "
                "number of steps to see it, or take a smaller step (max_learning_rate).",
            )
        return times, single

    def _diverged(self) -> ValueError:
        return value_error(
            "t",
            "a number of steps after which the outputs are finite",
            f"one after which they exceed float64, as lr={self.learning_rate} is above the "
            f"largest stable step, {self.max_learning_rate:.9g}",
            "Take a smaller step, or fewer steps.",
        )


def read_test(
    modes: Modes, f0_test: Tensor | None, k_test_train: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The test outputs at t = 0 as columns, and K_st V; `None` without a test kernel."""
    layout = modes.layout
    if k_test_train is None:
        if f0_test is not None:
            raise value_error(
                "k_test_train",
                "given with `f0_test`",
                describe(None),
                "Test outputs move with the kernel between test and training samples.",
            )
        return None
    kernel = layout.read_kernel("k_test_train", k_test_train, None, layout.samples)
    samples = k_test_train.shape[0]
    if f0_test is None:
        start = layout.columns(torch.zeros(layout.shape(samples), dtype=torch.float64))
        start = start.to(layout.work_device)
    else:
        start = layout.read_outputs("f0_test", f0_test, samples)
    eps = max(modes.eps, torch.finfo(check_tensor("k_test_train", k_test_train).dtype).eps)
    return start, modes.project(kernel, eps)


def spread(vectors: Tensor, factors: Tensor, modes: Tensor) -> Tensor:
    """V · diag(factors_t) · modes `[T, M, C]` for all times t, computed as one product."""
    times, size = factors.shape
    scaled = factors.mT[:, :, None] * modes[:, None, :]
    product = vectors @ scaled.reshape(size, -1)
    return product.reshape(vectors.shape[0], times, -1).transpose(0, 1)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
