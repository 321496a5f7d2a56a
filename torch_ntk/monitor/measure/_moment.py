"""The network at one step, with the quantities from which metrics are computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from ... import metrics as m
from ..._checks import UndefinedError
from ..._types import Parameters
from ..reference._reference import Reference
from ..stability._stability import Training
from ..stability._training_loss import LossLike
from ._evaluation import Evaluation
from ._last_step import LastStep
from ._linearization import Linearization, Movement

Total: TypeAlias = Callable[[int, Callable[[slice], Tensor]], Tensor]
"""A function of the number of outputs, and of a function that computes the part of the kernel
`[N, N]` for a slice of them. It returns the sum of all parts, of which other processes may have
computed some."""


@dataclass
class Moment:
    """The network at one step, and the reference with which it is compared.

    Kernel, spectrum, outputs and movement are computed once, when a metric first uses them.

    Attributes:
        network: The module to measure, on the device of the reference.
        reference: The reference.
        step: The number of optimizer steps so far.
        evaluation: The settings by which kernels and outputs are computed.
        by_module: Whether the kernel is computed as a sum of parts, because a metric needs them.
        is_reference: Whether the network is the one of the reference, so that its kernel and
            outputs are Θ_0 and f_0.
        training: The module in training and its optimizers.
        optimizer: The optimizer whose P is in the kernel, or None for the kernel of gradient
            descent.
        loss: The loss of the training, as `stability.find_loss` accepts it.
        previous: The step and the kernel of the measurement before, if it was stored.
        undefined: The reasons why metrics have no value, by their names.
        statistics: The names of the buffers that contain running statistics of the probe.
        last_step: Parameters and learning rates before the last step, if a metric needs them and
            they are known.
        total: A function that adds up the parts of the kernel, of which other processes compute
            some. None means that the kernel is computed here.
    """

    network: nn.Module
    reference: Reference
    step: int
    evaluation: Evaluation
    by_module: bool = False
    is_reference: bool = False
    training: Training = field(default_factory=Training)
    optimizer: Optimizer | None = None
    loss: LossLike = "auto"
    previous: tuple[int, Tensor] | None = None
    undefined: dict[str, str] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()
    last_step: LastStep | None = None
    total: Total | None = None

    @cached_property
    def parts(self) -> Parameters:
        """The parts Θ_m of the kernel, by the names of modules."""
        reference = self.reference
        if self.is_reference and reference.parts is not None:
            return reference.parts
        return self.evaluation.kernel_by_module(
            self.network, reference.trained, reference.probe, self.optimizer
        )

    @cached_property
    def kernel(self) -> Tensor:
        """The kernel Θ_t on the probe, of shape `[N, N]`, or `[N, N, O, O]` for `"full"`."""
        reference = self.reference
        if self.is_reference and reference.kernel is not None:
            return reference.kernel
        if self.by_module:
            return sum_of(self.parts)
        evaluation, names, probe = self.evaluation, reference.trained, reference.probe
        if self.total is not None and evaluation.shares > 1:
            take = functools.partial(evaluation.kernel_of_some, self.network, names, probe)
            return self.total(evaluation.shares, take)
        return evaluation.kernel(self.network, names, probe, optimizer=self.optimizer)

    @property
    def kernel_0(self) -> Tensor:
        """The kernel Θ_0 on the probe; `UndefinedError` if the reference has none."""
        if self.reference.kernel is None:
            raise UndefinedError("the run was anchored without a kernel to compare with.")
        return self.reference.kernel

    @cached_property
    def spectrum(self) -> m.SpectralSummary:
        """The eigenvalues of Θ_t, with condition number and ranks."""
        precision = self.evaluation.eigenvalue_precision(self.network)
        return m.spectral_summary(self.kernel, eps=precision)

    @cached_property
    def outputs(self) -> Tensor:
        """The outputs f_t `[N, O]` on the probe."""
        reference = self.reference
        if self.is_reference and reference.outputs is not None:
            return reference.outputs
        return self.evaluation.outputs(self.network, reference.trained, reference.probe)

    @cached_property
    def movement(self) -> Movement:
        """The outputs f_t and those of the linearization, f_0 + ⟨θ_t - θ_0, ∇f_0⟩, on the probe."""
        linearization = Linearization(self.network, self.reference, self.evaluation)
        f_0 = self.reference.outputs
        if f_0 is None:
            return linearization.movement_in_blocks()
        return Movement.of(self.outputs, linearization.outputs(f_0), f_0)

    @property
    def numbers(self) -> int:
        """The number of outputs of all samples, N · O."""
        return len(self.reference.probe) * self.reference.size

    @property
    def infinite(self) -> Tensor | None:
        """The kernel `[N, N]` of the infinitely wide network, or None if there is none."""
        return self.reference.infinite

    @property
    def targets(self) -> Tensor:
        """The targets of the probe; `UndefinedError` if it has none."""
        y = self.reference.probe.y
        if y is None:
            raise UndefinedError(self.reference.probe.why_none)
        return y


def sum_of(parts: Parameters) -> Tensor:
    """The kernel Θ = Σ_m Θ_m, given its parts."""
    kernels = list(parts.values())
    total = kernels[0].clone()
    for part in kernels[1:]:
        total += part
    return total
