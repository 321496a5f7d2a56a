"""The second derivative of a loss in the outputs, and its root."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import UndefinedError, describe
from ._training_loss import IGNORED, LossFunction, like_outputs


@dataclass(frozen=True)
class HessianRoot:
    """S with ∇²loss = S Sᵀ in the outputs, one block `[O, O]` for each sample.

    S_n = √w_n I for squared error; for cross-entropy with probabilities p
    S_n = √w_n (diag(√p) - p √pᵀ), as diag(p) - p pᵀ is the square of the bracket.

    Attributes:
        weight: w `[N]`, the weight of each sample in the mean.
        p: Probabilities `[N, O]`, or None for squared error.
    """

    weight: Tensor
    p: Tensor | None

    def times(self, v: Tensor) -> Tensor:
        """S v of vectors `[N, O, K]`."""
        return self._scaled(v, transposed=False)

    def transposed_times(self, v: Tensor) -> Tensor:
        """Sᵀ v of vectors `[N, O, K]`."""
        return self._scaled(v, transposed=True)

    def _scaled(self, v: Tensor, *, transposed: bool) -> Tensor:
        scale = self.weight.sqrt()[:, None, None]
        if self.p is None:
            return scale * v
        p = self.p[:, :, None]
        root = p.sqrt()
        left, right = (root, p) if transposed else (p, root)
        return scale * (root * v - left * (right * v).sum(1, keepdim=True))


def root_of_hessian(loss: LossFunction, f: Tensor, y: Tensor) -> HessianRoot | None:
    """The root at outputs f, for the losses for which it is known.

    Args:
        loss: From `find_loss`.
        f: Outputs `[N, O]`.
        y: Targets.

    Raises:
        ValueError: The targets do not go with the loss.
    """
    n, outputs = f.shape
    even = torch.ones(n, dtype=f.dtype, device=f.device) / n
    if loss is F.mse_loss:
        if y.numel() != f.numel() or not y.is_floating_point():
            raise UndefinedError(
                f"squared error needs targets {tuple(f.shape)}; got {describe(y)}."
            )
        return HessianRoot(even * (2.0 / outputs), None)
    if loss is not F.cross_entropy:
        return None
    p = f.softmax(1)
    if not y.is_floating_point() and y.shape == (n,):
        counted = (y != IGNORED).to(f.dtype)
        return HessianRoot(counted / counted.sum(), p)
    if y.shape == f.shape:
        return HessianRoot(even * y.to(f.dtype).sum(1), p)  # probabilities: sums of 1
    raise UndefinedError(
        f"cross-entropy of outputs {tuple(f.shape)} needs labels ({n},) or probabilities of "
        f"the outputs' shape; got {describe(y)}. With outputs of more dimensions pass "
        "loss=lambda f, y: cross_entropy(f.unflatten(1, (classes, ...)), y)."
    )


def hessian(loss: LossFunction, f: Tensor, y: Tensor) -> Tensor:
    """∇²loss `[N·O, N·O]` in the flattened outputs, by differentiating twice.

    Raises:
        ValueError: The loss does not give a finite scalar that can be differentiated twice.
    """
    targets, loss = y.to(f.dtype) if y.is_floating_point() else y, like_outputs(loss, f)
    with torch.inference_mode(False), torch.enable_grad():
        try:
            values: Tensor = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
                lambda flat: loss(flat.reshape(f.shape), targets), f.detach().clone().flatten()
            )
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UndefinedError(
                f"the loss cannot be differentiated twice in the outputs {tuple(f.shape)}: {error}"
            ) from error
    if not bool(values.isfinite().all()):
        raise UndefinedError("the loss's second derivative is not finite on the probe.")
    return values
