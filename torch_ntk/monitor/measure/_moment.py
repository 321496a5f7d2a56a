"""The network at one step, as the metrics see it."""

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


@dataclass
class Moment:
    """The network at one step, and its reference.

    Kernel, spectrum, outputs and movement are computed when they are first asked for, and
    once: whichever metrics need them share them.

    Attributes:
        network: The module, on the device of the reference.
        reference: What it is compared with.
        step: Optimizer steps taken.
        evaluation: How kernels and outputs are taken.
        by_module: Whether the kernel is taken in its parts, because a metric needs them.
        is_reference: Whether the network is the one of the reference, so that Θ_0 and f_0 are
            already what is asked for.
        training: What moves the network.
        optimizer: By whose P the kernel is taken; None for that of gradient descent.
        loss: The loss in training; see `stability.find_loss`.
        previous: Step and kernel of the measurement before, if that was kept.
        undefined: Why metrics have no value, by their names.
        statistics: Names of the buffers that hold running statistics of the probe.
        last_step: The step just taken, if a metric needs it and it is known.
        total: Adds the kernels of outputs up that other processes have taken, from how many there
            are and a function that takes the kernel of some; None takes all of them here.
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
        """The parts Θ_m of the kernel, by module."""
        at_start = self.reference.parts
        if self.is_reference and at_start is not None:
            return at_start
        reference = self.reference
        return self.evaluation.kernel_by_module(
            self.network, reference.trained, reference.probe, self.optimizer
        )

    @cached_property
    def kernel(self) -> Tensor:
        """Θ_t on the probe."""
        reference = self.reference
        if self.is_reference and reference.kernel is not None:
            return reference.kernel
        if self.by_module:
            return sum_of(self.parts)
        evaluation, names, probe = self.evaluation, reference.trained, reference.probe
        if self.total is not None and evaluation.shares > 1:
            take = functools.partial(evaluation.kernel_of_some, self.network, names, probe)
            return self.total(evaluation.shares, take)
        return self.evaluation.kernel(
            self.network, reference.trained, reference.probe, optimizer=self.optimizer
        )

    @cached_property
    def spectrum(self) -> m.SpectralSummary:
        """Eigenvalues of Θ_t, and what follows from them."""
        precision = self.evaluation.eigenvalue_precision(self.network)
        return m.spectral_summary(self.kernel, eps=precision)

    @cached_property
    def outputs(self) -> Tensor:
        """f_t on the probe, `[N, O]`."""
        reference = self.reference
        if self.is_reference and reference.outputs is not None:
            return reference.outputs
        return self.evaluation.outputs(self.network, reference.trained, reference.probe)

    @cached_property
    def movement(self) -> Movement:
        """f_t beside f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩ on the probe."""
        linearization = Linearization(self.network, self.reference, self.evaluation)
        f_0 = self.reference.outputs
        if f_0 is None:
            return linearization.movement_in_blocks()
        return Movement.of(self.outputs, linearization.outputs(f_0), f_0)

    @property
    def infinite(self) -> Tensor | None:
        """The kernel of the infinitely wide network; None where there is none."""
        return self.reference.infinite

    @property
    def targets(self) -> Tensor:
        """The targets of the probe.

        Raises:
            ValueError: It has none.
        """
        y = self.reference.probe.y
        if y is None:
            raise UndefinedError(self.reference.probe.why_none)
        return y


def sum_of(parts: Parameters) -> Tensor:
    """Θ = Σ_m Θ_m."""
    kernels = list(parts.values())
    total = kernels[0].clone()
    for part in kernels[1:]:
        total += part
    return total
