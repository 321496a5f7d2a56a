"""`StabilityEdge`: whether the learning rate is small enough for the loss's curvature."""

from __future__ import annotations

from typing_extensions import Unpack

from torch_ntk.monitor import LossLike, ProbeLike

from ._base import KernelCallback
from ._options import StabilityOptions


class StabilityEdge(KernelCallback):
    r"""Logs the learning rate times the largest curvature of the loss, and its limit.

    That is `ntk/stability` = lr·λ_max with `ntk/sharpness` = λ_max, the largest eigenvalue of the
    Gauss-Newton matrix Jᵀ H J on the probe, J the Jacobian of the outputs in eval mode and H the
    second derivative of the loss in the outputs, and `ntk/stability_limit`, beyond which steps on a
    quadratic of that curvature grow:

    - `SGD`: 2 without momentum, 2 (1 + μ) with momentum μ, 2 (1 + μ)/(1 - τ) with dampening τ,
      2 (1 + μ)/(1 + 2 μ) with Nesterov's step, each less lr·weight_decay;
    - `Adam`, `AdamW`: 2 (1 + β₁)/(1 - β₁), that is 38 for β₁ = 0.9, of the preconditioned
      curvature: λ_max of P^½ Jᵀ H J P^½ with P = 1/(√v̂ + ε) as it is now. AdamW's weight decay
      lowers the limit by the factor 1 - lr·weight_decay/2;
    - `RMSprop`: 2 (1 + μ), and `Adagrad`: 2, both of the preconditioned curvature.

    λ_max is that of Θ^½ H Θ^½, Θ `[N, N, O, O]` the kernel, J P Jᵀ where there is a P. Full-batch
    training often rises to the limit and stays there ("edge of stability"). For SGD one warning
    says when it is first exceeded. Adaptive optimizers need not diverge there: P follows the
    curvature. It also rests on few gradients in the first steps, and before the first one there is
    nothing to measure.

    λ_max is in the units of the loss that is trained, for a mean over samples (cross-entropy), over
    all entries (`mse_loss`) or what `loss` does. Learning rate and momentum are read from the
    optimizer's parameter groups at each measurement; if groups have learning rates of their own,
    they count in P, relative to the largest for SGD and to that of the first group for others, and
    there is no `ntk/sharpness`; of several weight decays the largest counts. It is not defined, and
    one warning says why, for other optimizers, for several that move one network, and for groups
    that differ in momentum.
    The weight decay of Adam, RMSprop and Adagrad, which is a part of the gradient, is not counted,
    nor are gradient clipping and the noise of batches.

    Args:
        probe: As in `NTKMonitor`; it needs targets. Where N·O exceeds 4,096 the kernel is
            multiplied with instead of formed, for cross-entropy and squared error only.
        loss: `"auto"` takes the only loss module (`nn.CrossEntropyLoss`, …) of the LightningModule;
            without any, `F.cross_entropy` where targets are class labels, `F.mse_loss` where they
            are numbers. If another loss is trained, pass it: `"cross_entropy"`, `"mse_loss"`, or a
            function `loss(f, y) -> scalar` of outputs `[N, O]` and targets.
        **options: As in `NTKMonitor`.

    Raises:
        TypeError, ValueError: An argument is wrong.

    References:
        Cohen, Kaur, Li, Kolter, Talwalkar, "Gradient descent on neural networks typically occurs
        at the edge of stability" (2021). Cohen et al., "Adaptive gradient methods at the edge of
        stability" (2022).
    """

    own = "stability_"

    def __init__(
        self,
        probe: ProbeLike | None = None,
        *,
        loss: LossLike = "auto",
        **options: Unpack[StabilityOptions],
    ) -> None:
        super().__init__(
            probe, metrics=("stability",), output="full", loss=loss, log_figures=False, **options
        )
