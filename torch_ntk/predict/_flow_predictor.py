"""Outputs under gradient flow of any loss, computed by solving the differential equation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .._checks import check_tensor, describe, value_error
from ..memory import free_memory
from ._class_targets import class_targets
from ._flow_state import FlowState
from ._gaussian import promoted
from ._loss import Loss, OutputLoss
from ._modes import Modes
from ._ode import Flow, Tolerances, solve
from ._predictor import read_test
from ._times import Time, read_times

# The number of matrices that are in memory at the same time: the Hessian, two products, the
# Jacobian that they give, and its LU factors.
_MATRICES = 6


@dataclass(frozen=True, eq=False, repr=False)
class FlowPredictor:
    """Outputs under gradient flow of a loss; made by `gradient_flow`.

    Attributes:
        loss: `loss(f, y)`.
        targets: A copy of y.
        options: The solver and its tolerances.
        progress: Whether a progress bar is shown.
    """

    loss: Loss
    targets: Tensor
    options: Tolerances
    progress: bool
    _modes: Modes
    _loss_targets: Tensor
    _knows_outputs: bool  # if False, the number of outputs is that of f0_train

    def __repr__(self) -> str:
        layout, eigen = self._modes.layout, self._modes.eigen
        return (
            f"FlowPredictor({layout.samples} samples, "
            f"{layout.outputs if self._knows_outputs else 'any number of'} outputs, "
            f"rank {eigen.rank} of {eigen.size}, {self.options.method}, "
            f"rtol={self.options.rtol:g}, atol={self.options.atol:g})"
        )

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of the regularized train kernel, ascending, `[N]` or `[N·O]`, float64."""
        return self._modes.eigen.values.clone()

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the kernel's noise floor."""
        return self._modes.eigen.rank

    def __call__(
        self,
        t: Time = None,
        f0_train: Tensor | None = None,
        f0_test: Tensor | None = None,
        k_test_train: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs at time t from outputs f0 at t = 0.

        Args:
            t: A time, a 0-dim or 1-D tensor of times (which take one solution), or `None` or
                infinity for the limit. The limit is reached when the Newton step of the loss, in
                the directions that the kernel can move, is at most atol + rtol·max|f|: to second
                order, this is the remaining distance. Where the loss has no finite minimum, as
                cross-entropy on labels, the limit is refused.
            f0_train: Outputs on the training samples at t = 0; zeros by default.
            f0_test: Outputs on test samples at t = 0, `[M]` or `[M, O]`; zeros by default.
            k_test_train: The kernel between test and training samples, `[M, N]` or
                `[M, N, O, O]`.

        Returns:
            `(f_train, f_test)` in the shapes of f0, with a leading axis of times if t is 1-D;
            `f_test` is `None` without `k_test_train`. They are computed in float64 and returned in
            the promoted dtype of the floating-point tensors that went in.

        Raises:
            TypeError: An argument, or the value of the loss, is of the wrong type or dtype.
            ValueError: Shapes or devices do not fit, something is not finite, a time is negative,
                the loss is not scalar, or there is no limit.
            RuntimeError: The solver fails, as it does for losses that are not smooth.

        Warns:
            SingularKernelWarning: The kernel is singular and t so large that the result depends on
                its numerical rank; outputs keep f0 in directions outside of the kernel's range.
        """
        # The derivatives of the loss need autograd, which records nothing in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return self._predict(t, f0_train, f0_test, k_test_train)

    def _predict(
        self, t: Time, f0_train: Tensor | None, f0_test: Tensor | None, k_test_train: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        times, single = read_times(t, torch.device("cpu"))
        modes = self._modes if self._knows_outputs else self._with_outputs_of(f0_train)
        layout = modes.layout
        if f0_train is None:
            start = torch.zeros(layout.shape(), dtype=torch.float64, device=layout.work_device)
            start = layout.columns(start)
        else:
            start = layout.read_outputs("f0_train", f0_train)
        test = read_test(modes, f0_test, k_test_train)
        targets = class_targets(self.loss, self._loss_targets, layout.shape())
        loss = OutputLoss(self.loss, targets, layout)
        loss.check(start)
        _check_memory(start.numel())
        floating = self.targets if self.targets.dtype.is_floating_point else None
        dtype = promoted(modes.dtype, floating, f0_train, f0_test, k_test_train)

        ordered, order = times.sort()
        longest = float(ordered[-1])
        curvature = float(loss.hessian(start, 0.0).abs().max())
        state = FlowState.of(modes, loss, start, longest, curvature)
        options = Tolerances(
            self.options.method,
            self.options.rtol,
            self.options.atol / state.scale,
            self.options.max_evaluations,
        )
        flow = Flow(
            start.numel(),
            state.velocity,
            state.jacobian,
            lambda t, b: state.remaining(b, t, self.options.atol, self.options.rtol),
            state.horizon(curvature),
        )
        solved = solve(flow, ordered.numpy(), options, progress=self.progress)
        states = torch.from_numpy(np.ascontiguousarray(solved)).to(layout.work_device)
        states = states[order.argsort().to(states.device)].reshape(-1, *start.shape)
        f_train = layout.returned(state.train(states), dtype, single=single)
        if test is None:
            return f_train, None
        moved = test[0] + state.test(states, test[1])
        return f_train, layout.returned(moved, dtype, single=single)

    def _with_outputs_of(self, f0_train: Tensor | None) -> Modes:
        """The modes for the number of outputs of f0."""
        if f0_train is None:
            raise value_error(
                "num_outputs",
                "given to gradient_flow, or `f0_train` in the call, as neither the kernel nor "
                "`y` shows how many outputs there are",
                describe(None),
                "For class indices pass the number of classes.",
            )
        start = check_tensor("f0_train", f0_train)
        samples = self._modes.layout.samples
        if start.ndim not in (1, 2) or start.shape[0] != samples or start.numel() == 0:
            raise value_error("f0_train", f"of shape [{samples}] or [{samples}, O]", start)
        layout = replace(
            self._modes.layout,
            outputs=start.shape[1] if start.ndim == 2 else 1,
            flat=start.ndim == 1,
        )
        return replace(self._modes, layout=layout)


def _check_memory(size: int) -> None:
    """Raise `ValueError` if the solver's matrices would not fit in memory."""
    needed = _MATRICES * 8 * size**2
    free = free_memory(torch.device("cpu"))  # the solver works on the CPU
    if needed > free:
        raise value_error(
            "k_train_train",
            "small enough for matrices of (N·O)² entries",
            f"N·O = {size}, which takes about {needed / 2**30:.1f} GiB with "
            f"{free / 2**30:.1f} GiB free",
            "Use fewer training samples; squared error has the closed form gradient_flow_mse.",
        )
