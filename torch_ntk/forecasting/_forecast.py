"""`Forecast`, the result of predicting a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Forecast:
    """A training that was predicted from the kernel at its start; see `forecast`.

    Attributes:
        steps: The numbers of the predicted optimizer steps, `[T]`, integers.
        loss: The predicted training loss at these steps, `[T]`, float64; infinite where it diverges
            beyond the range of float64.
        train_outputs: Predicted outputs on the training samples, `[T, N, O]`.
        test_outputs: Predicted outputs on the test samples, `[T, M, O]`; None without test samples.
        curvatures: The eigenvalues of the loss's curvature Θ^½ ∇²loss Θ^½ in the outputs at the
            start, descending, `[D]`. For squared error these are c·λ_i with the eigenvalues λ_i of
            Θ, c = 1 for a loss ½ Σ‖f - y‖² and 1/(N·O) for its mean. D is N or N·O.
        mode_steps: The number of steps in which each mode decays to 1/e,
            (1 - momentum)/(lr · curvature), `[D]`, ascending; infinite without curvature.
        lr: The learning rate.
        momentum: The momentum of the optimizer.
        max_lr: The largest stable learning rate, 2 (1 + momentum) / curvatures[0]. It is exact for
            squared error; for another loss it holds while the curvature is that of the start.
        stable: Whether lr < max_lr.
        exact_steps: True if discrete steps were predicted (squared error); False if gradient flow
            was, at the time to which the steps amount.
        kernel: The kernel from which the training was predicted.
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
