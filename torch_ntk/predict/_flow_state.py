"""The coordinates in which gradient flow of a general loss is solved.

With K = V diag(λ) Vᵀ write f = f0 + K a, so that ȧ = -∂loss/∂f, and f_test = f0_test + K_st a
holds for the same a. The state is b = diag(s) Vᵀ a with s = √max(λ, floor):

    ḃ = -diag(s) Vᵀ ∂loss/∂f,   f = f0 + V diag(λ/s) b,   f_test = f0_test + K_st V diag(1/s) b.

Where λ is resolved, s = √λ and |b| is the distance that the parameters have moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._loss import OutputLoss
from ._modes import Modes
from ._ode import Array

_ENOUGH_TIMES = 1e6
"""A flow that has a limit has reached it after so many times the decay time of its slowest mode."""


@dataclass(frozen=True, eq=False)
class FlowState:
    """Velocity, Jacobian and outputs as functions of b `[D, C]`, which is flattened for the solver.

    Attributes:
        modes: The eigenmodes of the kernel.
        loss: The loss of outputs.
        start: f0 as columns.
        scale: √mean(diag K), the change of outputs per unit of b.
        into: s `[D, 1]`, the factor from gradients to b; 0 for modes that are kept fixed.
        out: λ/s `[D, 1]`, the factor from b to outputs on the training samples.
        test_out: 1/s `[D, 1]`, the factor from b to outputs on test samples; 0 for fixed modes.
    """

    modes: Modes
    loss: OutputLoss
    start: Tensor
    scale: float
    into: Tensor
    out: Tensor
    test_out: Tensor

    @staticmethod
    def of(
        modes: Modes, loss: OutputLoss, start: Tensor, longest: float, curvature: float
    ) -> FlowState:
        """The coordinates for integration up to the time `longest`.

        Modes below the noise floor are kept fixed, with a warning, if by then an eigenvalue of the
        size of the floor would move them noticeably.
        """
        eigen = modes.eigen
        values = eigen.clipped
        s = values.clamp(min=eigen.floor).sqrt()
        s = torch.where(s == 0.0, 1.0, s)
        moving = torch.ones_like(eigen.resolved)
        if eigen.rank < eigen.size and not longest * eigen.floor * curvature < 1.0:
            modes.warn_of_rank()
            moving = eigen.resolved
        scale = float(values.mean()) ** 0.5
        return FlowState(
            modes,
            loss,
            start,
            scale if scale > 0.0 else 1.0,
            torch.where(moving, s, 0.0)[:, None],
            torch.where(moving, values / s, 0.0)[:, None],
            torch.where(moving, 1.0 / s, 0.0)[:, None],
        )

    def train(self, b: Tensor) -> Tensor:
        """The outputs on the training samples, for b `[..., D, C]`."""
        return self.start + self.modes.eigen.vectors @ (self.out * b)

    def test(self, b: Tensor, projected: Tensor) -> Tensor:
        """The change of the outputs on test samples, for b `[..., D, C]` and the product K_st V."""
        return projected @ (self.test_out * b)

    def velocity(self, t: float, state: Array) -> Array:
        """ḃ = -diag(s) Vᵀ ∂loss/∂f."""
        gradient = self.loss.gradient(self.train(self._tensor(state)), t)
        return self._array(-self.into * self.modes.rotate(gradient))

    def jacobian(self, t: float, state: Array) -> Array:
        """∂ḃ/∂b = -diag(s) Vᵀ ∂²loss/∂f² V diag(λ/s)."""
        hessian = self.loss.hessian(self.train(self._tensor(state)), t)
        size = state.size
        return self._array(-self._in_modes(hessian, self.into, self.out)).reshape(size, size)

    def remaining(self, state: Array, t: float, atol: float, rtol: float) -> float:
        """The size of the Newton step of the loss in f, divided by atol + rtol·max|f|.

        The step is taken in the resolved modes only. It is infinite if the loss has a slope in a
        direction without curvature.
        """
        b = self._tensor(state)
        outputs = self.train(b)
        hessian = self.loss.hessian(outputs, t)
        s = torch.where(self.modes.eigen.resolved[:, None], self.out, 0.0)
        slope = (s * self.modes.rotate(self.loss.gradient(outputs, t))).flatten()
        reduced = self._in_modes(hessian, s, s).reshape(state.size, state.size)
        curvature, directions = torch.linalg.eigh(0.5 * reduced + 0.5 * reduced.mT)
        along = directions.mT @ slope
        largest = float(outputs.abs().max())
        noise = state.size * torch.finfo(torch.float64).eps
        steep = curvature > noise * float(curvature.abs().max())
        # A slope up to this size is explained by the rounding of f.
        explained = noise * float(s.max()) * float(hessian.abs().max()) * (1.0 + largest)
        if float(torch.where(steep, 0.0, along).norm()) > explained:
            return math.inf
        step = directions @ torch.where(steep, along / curvature, 0.0)
        moved = self.modes.eigen.vectors @ (s * step.reshape(b.shape))
        return float(moved.abs().max()) / (atol + rtol * largest)

    def horizon(self, curvature: float) -> float:
        """A time by which every resolved mode has reached its limit, if it has one."""
        resolved = self.modes.eigen.values[self.modes.eigen.resolved]
        slowest = float(resolved.min()) if resolved.numel() else 1.0
        return _ENOUGH_TIMES / (slowest * (curvature if curvature > 0.0 else 1.0))

    def _in_modes(self, hessian: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """diag(left) Vᵀ H V diag(right) for H `[D, C, D, C]`."""
        d, c = self.start.shape
        v = self.modes.eigen.vectors
        rotated = (v.mT @ hessian.reshape(d, -1)).reshape(d * c, d, c)
        both = (rotated.transpose(1, 2) @ v).transpose(1, 2).reshape(d, c, d, c)
        return left[:, :, None, None] * both * right

    def _tensor(self, state: Array) -> Tensor:
        tensor = torch.from_numpy(np.array(state, dtype=np.float64))
        return tensor.to(self.start.device).reshape(self.start.shape)

    @staticmethod
    def _array(tensor: Tensor) -> Array:
        array: Array = tensor.detach().cpu().numpy().reshape(-1)
        return array
