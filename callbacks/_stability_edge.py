"""`StabilityEdge`: whether the learning rate is small enough for the loss's curvature."""

from __future__ import annotations

from typing_extensions import Unpack

from torch_ntk.monitor import LossLike, ProbeLike

from ._base import KernelCallback
from ._options import StabilityOptions


class StabilityEdge(KernelCallback):
    r"""Logs the learning rate times the largest curvature of the loss, against its limit.

    That is `ntk/stability` = lr·λ_max with `ntk/sharpness` = λ_max, the largest eigenvalue of the
    Gauss-Newton matrix Jᵀ H J on the probe, J the Jacobian of the outputs in eval mode and H the
    second derivative of the loss in the outputs, and `ntk/stability_limit`: 2 for plain SGD,
    2 (1 + μ) with momentum μ, and what holds with dampening or Nesterov's step. Along a direction
    of larger curvature than limit/lr, steps of gradient descent on a quadratic grow. The eigenvalue
    is that of Θ^½ H Θ^½, Θ `[N, N, O, O]` the kernel. Full-batch training often rises to the limit
    and stays there ("edge of stability"); when it is first exceeded, one warning says so.

    λ_max is in the units of the loss that is trained, for a mean over samples (cross-entropy), over
    all entries (`mse_loss`) or what `loss` does. Learning rate and momentum are read from the
    optimizer's parameter groups at each measurement; if groups have learning rates of their own,
    `ntk/stability` is λ_max with Θ = Σ_g lr_g Θ_g, and there is no `ntk/sharpness`. It is not
    defined, and one warning says why, for other optimizers than `torch.optim.SGD`, for several
    that move one network, and for groups that differ in momentum. Weight decay is not counted, nor
    are gradient clipping and the noise of batches.

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
        at the edge of stability" (2021).
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
