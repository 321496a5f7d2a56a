"""`Forecast`: a predicted training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Forecast:
    """A training as the kernel at its start predicts it; see `forecast`.

    Attributes:
        steps: The optimizer steps of the trajectory, `[T]`, integers.
        loss: The predicted training loss at these, `[T]`, float64; infinite where it diverges
            beyond the range of float64.
        train_outputs: Predicted outputs on the training samples, `[T, N, O]`.
        test_outputs: Predicted outputs on the test samples, `[T, M, O]`, or None without any.
        curvatures: The eigenvalues of the loss's curvature Θ^½ ∇²loss Θ^½ in the outputs at the
            start, descending, `[D]`. For squared error these are c·λ_i with the eigenvalues λ_i of
            Θ, c = 1 for a loss ½ Σ‖f - y‖² and 1/(N·O) for its mean. D is N or N·O.
        mode_steps: In how many steps each mode decays to 1/e, (1 - momentum)/(lr · curvature),
            `[D]`, ascending; infinite where there is no curvature.
        lr: The learning rate.
        momentum: Of the optimizer.
        max_lr: The largest stable learning rate, 2 (1 + momentum) / curvatures[0]. Exact for
            squared error; for another loss it is right as long as its curvature is that of the
            start.
        stable: Whether lr < max_lr.
        exact_steps: Whether discrete steps were predicted (squared error), or gradient flow at
            the time that so many steps amount to.
        kernel: The kernel, as it was computed.
    """

    steps: Tensor
    loss: Tensor
    train_outputs: Tensor = field(repr=False)
    test_outputs: Tensor | None = field(repr=False)
    curvatures: Tensor = field(repr=False)
    mode_steps: Tensor = field(repr=False)
    lr: float
    momentum: float
    max_lr: float
    stable: bool
    exact_steps: bool
    kernel: Tensor = field(repr=False)

    def __str__(self) -> str:
        last = int(self.steps[-1])
        learned = int((self.mode_steps <= last).sum())
        largest = "none" if math.isinf(self.max_lr) else f"{self.max_lr:.3g}"
        text = (
            f"training loss {float(self.loss[0]):.4g} -> {float(self.loss[-1]):.4g} at step "
            f"{last}; lr {self.lr:.3g}, largest stable {largest}; {learned} of "
            f"{len(self.mode_steps)} modes learned by then"
        )
        return text if self.stable else f"{text}; DIVERGES: lower the learning rate"
