"""`StabilityEdge`: whether the learning rate is small enough for the curvature of the loss."""

from __future__ import annotations

from typing_extensions import Unpack

from torch_ntk.monitor import LossLike, ProbeLike

from ._base import KernelCallback
from ._options import StabilityOptions


class StabilityEdge(KernelCallback):
    r"""Logs the learning rate times the largest curvature of the loss, and its limit.

    It logs `ntk/stability` = lr·λ_max, `ntk/sharpness` = λ_max and `ntk/stability_limit`. Here
    λ_max is the largest eigenvalue of the Gauss-Newton matrix Jᵀ H J on the probe, where J is the
    Jacobian of the outputs in eval mode, and H the second derivative of the loss by the outputs. If
    lr·λ_max is above the limit, steps on a quadratic function of that curvature grow:

    - `SGD`: 2 without momentum, 2 (1 + μ) with momentum μ, 2 (1 + μ)/(1 - τ) with dampening τ,
      2 (1 + μ)/(1 + 2 μ) with Nesterov's step, each less lr·weight_decay;
    - `Adam`, `AdamW`: 2 (1 + β₁)/(1 - β₁), that is 38 for β₁ = 0.9, of the preconditioned
      curvature: λ_max of P^½ Jᵀ H J P^½ with P = 1/(√v̂ + ε) as it is now. AdamW's weight decay
      lowers the limit by the factor 1 - lr·weight_decay/2;
    - `RMSprop`: 2 (1 + μ), and `Adagrad`: 2, both of the preconditioned curvature.

    λ_max is computed as the largest eigenvalue of Θ^½ H Θ^½, where Θ `[N, N, O, O]` is the kernel
    J Jᵀ, or J P Jᵀ for an optimizer with a P. In full-batch training lr·λ_max often rises to the
    limit and stays there ("edge of stability"). For SGD there is a warning when the limit is first
    exceeded. Adaptive optimizers need not diverge above the limit, since P follows the curvature.
    In the first steps P is computed from few gradients, and before the first step there is no P, so
    that nothing is measured.

    λ_max is in the units of the loss that is trained: a mean over samples (cross-entropy), a mean
    over all entries (`mse_loss`), or whatever `loss` computes. Learning rate and momentum are read
    from the optimizer's parameter groups at each measurement. If groups have different learning
    rates, these become factors in P, relative to the largest one for SGD and to that of the first
    group for others, and there is no `ntk/sharpness`. If groups have different weight decays, the
    largest lr·weight_decay is used. The metric is not defined for other optimizers, for several
    optimizers of one network, and for groups with different momentum; then one warning says why.
    The weight decay of Adam, RMSprop and Adagrad, which is a part of the gradient, is not
    considered, nor are gradient clipping and the noise of batches.

    Args:
        probe: The samples with targets, in a form that `NTKMonitor` accepts. If N·O exceeds 4,096,
            the kernel is not formed but multiplied with vectors. This is possible for cross-entropy
            and squared error only.
        loss: `"auto"` takes the only loss module (`nn.CrossEntropyLoss`, …) of the LightningModule.
            If there is none, it is `F.cross_entropy` for targets that are class labels, and
            `F.mse_loss` for targets that are numbers. If another loss is trained, pass it:
            `"cross_entropy"`, `"mse_loss"`, or a function `loss(f, y) -> scalar` of outputs
            `[N, O]` and targets.
        **options: Further arguments of `NTKMonitor`.

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
