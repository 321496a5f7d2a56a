"""The eigenmodes of a train kernel, in which squared error decouples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .._checks import check_finite_number, value_error
from ..linalg import SymmetricEigen, as_float64, symmetric_eigen, warn_singular
from ._layout import Layout, check_train_kernel, layout_for

_INDEFINITE = (
    "A kernel is positive semi-definite: compute it in float64, pass a kernel that was computed "
    "in float32 with its float32 dtype, or add to its diagonal with diag_reg=1e-6."
)


class Dynamics(Protocol):
    """How the residual of one eigenmode changes with time, as a function of its eigenvalue λ."""

    def reach(self, times: Tensor) -> Tensor:
        """The numbers r `[T]` such that a slow mode has decayed by exp(-r λ) at these times."""
        ...

    def evolve(self, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Decay ρ and gain g, `[T, D]`, at finite times for eigenvalues λ ≥ 0.

        The residual of a mode is ρ times its initial value, and g = (1 - ρ)/λ, continued to λ = 0.
        """
        ...


@dataclass(frozen=True, eq=False)
class Modes:
    """K + diag_reg · mean(diag K) · 1 = V diag(λ) Vᵀ, and the layout of the problem.

    Attributes:
        layout: Shapes and device.
        eigen: The eigendecomposition.
        dtype: The dtype in which the kernel was passed.
        name: The caller's name of the kernel.
    """

    layout: Layout
    eigen: SymmetricEigen
    dtype: torch.dtype
    name: str

    @property
    def eps(self) -> float:
        """The relative precision of the kernel's entries."""
        return torch.finfo(self.dtype).eps

    def stable_step(self, rate: float, momentum: float = 0.0) -> float:
        """2 (1 + μ) / (c λ_max), the largest stable step; infinity for the zero kernel."""
        largest = float(self.eigen.values[-1])
        return 2.0 * (1.0 + momentum) / (rate * largest) if largest > 0.0 else math.inf

    def evolve(self, dynamics: Dynamics, times: Tensor) -> tuple[Tensor, Tensor]:
        """Decay and gain `[T, D]` at all times, including the limit.

        A mode below the noise floor moves with its computed eigenvalue (0 if that is negative) up
        to the time at which an eigenvalue of the size of the floor would move it noticeably. At
        later times and in the limit its position is unknown: it is kept fixed, with a warning.
        """
        values, floor = self.eigen.clipped, self.eigen.floor
        endless = torch.isinf(times)
        decay, gain = dynamics.evolve(values, torch.where(endless, 0.0, times))
        if bool(endless.any()):
            decay = torch.where(endless[:, None], 0.0, decay)
            gain = torch.where(endless[:, None], 1.0 / values, gain)
        if self.eigen.rank < self.eigen.size:
            too_late = endless | (dynamics.reach(times) * floor >= 1.0)
            if bool(too_late.any()):
                self.warn_of_rank()
                unknown = too_late[:, None] & ~self.eigen.resolved
                decay = torch.where(unknown, 1.0, decay)
                gain = torch.where(unknown, 0.0, gain)
        return decay, gain

    def inverse(self) -> Tensor:
        """1/λ `[D]`; 0 with a warning for eigenvalues that cannot be distinguished from 0."""
        if self.eigen.rank < self.eigen.size:
            self.warn_of_rank()
        return torch.where(self.eigen.resolved, 1.0 / self.eigen.values, 0.0)

    def warn_of_rank(self) -> None:
        """Warn that the result depends on the numerical rank."""
        warn_singular(
            f"`{self.name}` is singular: its numerical rank is {self.eigen.rank} of "
            f"{self.eigen.size} (eigenvalues up to {self.eigen.floor:.3g} cannot be distinguished "
            f"from 0; the largest is {float(self.eigen.values[-1]):.3g}). Outputs do not change in "
            "directions outside of its range (pseudo-inverse). Pass diag_reg to regularize it, or "
            "compute the kernel in float64."
        )

    def rotate(self, columns: Tensor) -> Tensor:
        """Vᵀ x, the coordinates of columns x `[D, C]` in the eigenmodes."""
        return self.eigen.vectors.mT @ columns

    def project(self, kernel: Tensor, eps: float) -> Tensor:
        """K_st V `[M, D]`, with 0 in place of rounding errors in unresolved modes.

        In directions in which the train kernel vanishes, the test kernel of the same function
        vanishes too. Its entries there are rounding errors, which would grow with time.
        """
        projected = kernel @ self.eigen.vectors
        if self.eigen.rank < self.eigen.size:
            noise = kernel.shape[1] * eps * kernel.abs().amax(1, keepdim=True)
            drop = ~self.eigen.resolved & (projected.abs() <= noise)
            projected = torch.where(drop, 0.0, projected)
        return projected


def check_diag_reg(value: object) -> float:
    """Return `diag_reg` if it is a finite number of at least 0."""
    return check_finite_number(
        "diag_reg",
        value,
        minimum=0.0,
        remedy="It is added to the kernel's diagonal in units of the diagonal's mean.",
    )


def read_modes(
    name: str, kernel: object, shape: tuple[int, ...], of: str, diag_reg: object
) -> Modes:
    """Check and decompose a train kernel for outputs of the given shape.

    Messages call the kernel `name`, and the argument that has this shape `of`.

    Raises:
        TypeError: The kernel is not a dense tensor of real floating-point numbers, or `diag_reg`
            not a number.
        ValueError: Shapes do not fit, the kernel is not finite, not symmetric or not positive
            semi-definite, or `diag_reg` is negative.
    """
    regularization = check_diag_reg(diag_reg)
    given = check_train_kernel(name, kernel)
    layout = layout_for(name, given, shape, of)
    matrix = layout.matrix(as_float64(name, given))
    eps = torch.finfo(given.dtype).eps
    shift = regularization * float(matrix.diagonal().mean())
    eigen = symmetric_eigen(name, matrix, eps=eps, shift=shift, remedy=_INDEFINITE)
    return Modes(layout, eigen, given.dtype, name)


def read_targets(y: Tensor) -> Tensor:
    """The targets in float64; they must be real and finite."""
    remedy = "Class labels are not regression targets: use torch_ntk.predict.one_hot(labels, C)."
    return as_float64("y", y, remedy)


def check_device(y: Tensor, name: str, device: torch.device) -> None:
    """Raise `ValueError` unless the targets are on the device of the kernel `name`."""
    if y.device != device:
        raise value_error(
            "y",
            f"on the device of `{name}`, {device}",
            f"a tensor on {y.device}",
            f"Move it with .to({str(device)!r}).",
        )


def read_regression(name: str, kernel: object, y: Tensor, diag_reg: object) -> tuple[Modes, Tensor]:
    """The modes of a train kernel as in `read_modes`, and the targets as columns in float64."""
    given = check_train_kernel(name, kernel)
    targets = read_targets(y)
    check_device(y, name, given.device)
    modes = read_modes(name, given, tuple(y.shape), "y", diag_reg)
    return modes, modes.layout.columns(targets)
