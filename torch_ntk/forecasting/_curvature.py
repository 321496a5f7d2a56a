"""The curvature of a loss in the directions in which a kernel can move the outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev

_CHUNK = 256  # rows of the Hessian that are computed at once


def curvatures(
    loss: Callable[[Tensor, Tensor], Tensor], kernel: Tensor, f: Tensor, y: Tensor
) -> Tensor:
    r"""The eigenvalues of Θ^½ ∇²loss Θ^½ at outputs f `[N, O]`, descending, `[N·O]`.

    With the Jacobian J of the outputs, Θ = J Jᵀ, they are the non-zero eigenvalues of the
    Gauss-Newton matrix Jᵀ ∇²loss J: gradient descent on the linearized network is stable around f
    while lr times the largest is below 2. The kernel is `[N, N]` or `[N, N, O, O]`, in float64.
    """
    size, shape = f.numel(), f.shape
    # Autograd records nothing in inference mode, and never tensors that were made there: copy them.
    with torch.inference_mode(False), torch.no_grad():
        at, targets = f.detach().clone(), y.detach().clone()
        gradient = grad(lambda flat: loss(flat.reshape(shape), targets))
        hessian: Tensor = jacrev(gradient, chunk_size=_CHUNK)(at.flatten())
        values, vectors = torch.linalg.eigh(_matrix(kernel, shape[1]))
        root = vectors * values.clamp_min(0.0).sqrt()
        inner = root.mT @ hessian.reshape(size, size) @ root
        found: Tensor = torch.linalg.eigvalsh(0.5 * (inner + inner.mT))
    return found.flip(0)


def _matrix(kernel: Tensor, outputs: int) -> Tensor:
    """A kernel as the matrix `[N·O, N·O]` that acts on flattened outputs `[N, O]`."""
    if kernel.ndim == 2:
        return torch.kron(kernel, torch.eye(outputs, dtype=kernel.dtype, device=kernel.device))
    size = kernel.shape[0] * outputs
    return kernel.permute(0, 2, 1, 3).reshape(size, size)
