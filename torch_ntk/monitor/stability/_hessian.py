"""The second derivative of a loss by the outputs, and its square root."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import UndefinedError, describe
from ._training_loss import IGNORED, LossFunction, like_outputs


@dataclass(frozen=True)
class HessianRoot:
    """The matrix S with ∇²loss = S Sᵀ, which has one block S_n `[O, O]` for each sample.

    For squared error S_n = √w_n I. For cross-entropy with probabilities p it is
    S_n = √w_n (diag(√p) - p √pᵀ), since the bracket B satisfies B Bᵀ = diag(p) - p pᵀ.

    Attributes:
        weight: The weight w_n of each sample in the mean, `[N]`.
        p: The probabilities `[N, O]`, or None for squared error.
    """

    weight: Tensor
    p: Tensor | None

    def times(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        """The products `S v` of K vectors `[N, O, K]`, or `Sᵀ v` if `transposed`."""
        scale = self.weight.sqrt()[:, None, None]
        if self.p is None:
            return scale * v
        p = self.p[:, :, None]
        root = p.sqrt()
        left, right = (root, p) if transposed else (p, root)
        return scale * (root * v - left * (right * v).sum(1, keepdim=True))


def root_of_hessian(loss: LossFunction, f: Tensor, y: Tensor) -> HessianRoot | None:
    """The root of the second derivative at outputs f `[N, O]`, or None if it is not known.

    The targets are labels `[N]` or numbers of the outputs' shape; others are an `UndefinedError`.
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
        # The weights are 1/N if the rows of y are probabilities.
        return HessianRoot(even * y.to(f.dtype).sum(1), p)
    raise UndefinedError(
        f"cross-entropy of outputs {tuple(f.shape)} needs labels ({n},) or probabilities of "
        f"the outputs' shape; got {describe(y)}. With outputs of more dimensions pass "
        "loss=lambda f, y: cross_entropy(f.unflatten(1, (classes, ...)), y)."
    )


def hessian(loss: LossFunction, f: Tensor, y: Tensor) -> Tensor:
    """The second derivative of the loss `[N·O, N·O]` by the flattened outputs, by autograd.

    An `UndefinedError` says that the loss cannot be differentiated twice, or is not finite.
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
